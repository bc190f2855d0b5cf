"""A training run from its recipe to its bundle."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from model.bundle import check_new
from model.card import NAME_PATTERN
from model.engines.base import DeviceName
from model.engines.torch import has_bfloat16
from model.errors import RecipeError, SaveError, TrainingError, cannot_write
from model.nets.zoo import build, short_name
from model.training import checkpoint
from model.training import data as datasets
from model.training.augment import denormalise
from model.training.average import average
from model.training.calibrate import FEW_IMAGES
from model.training.distill import Teacher
from model.training.export import export
from model.training.loop import Observer, Run, train
from model.training.outliers import Outliers, load_outliers
from model.training.pretrained import Init, read_state_dict
from model.training.progress import BarProgress, LineProgress, NoProgress, image_bar
from model.training.ranks import Ranks
from model.training.recipes import Recipe
from model.training.report.plots import batch_sheet, contact_sheet
from model.training.report.summary import class_table
from model.training.words import counted


def train_bundle(
    recipe: Recipe,
    *,
    data: datasets.Sources,
    run: Path,
    out: Path,
    name: str | None = None,
    device: DeviceName = "auto",
    seed: int = 0,
    download: bool = False,
    init: Path | None = None,
    outliers: Path | None = None,
    outliers_without: Collection[str] = (),
    teacher: Path | None = None,
    average_with: Path | None = None,
    average_share: float = 0.5,
    limit: int | None = None,
    cache: Path = datasets.CACHE,
    resume: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008, immutable
) -> None:
    """Train a recipe, test it once and write a bundle. Prints the progress to stdout.

    Args:
        recipe: to train.
        data: where the images are.
        run: folder of the checkpoint and of the contact sheets, batch.png and mistakes.png.
        out: bundle to write; must not exist.
        name: of the model, on the card; None for the name of `out`.
        device: "auto" uses CUDA if available.
        seed: of the weights, the order and the augmentation.
        download: download CIFAR-10 to the first folder of `data` if it is missing.
        init: state dict, checkpoint or bundle to start from.
        outliers: folder of images of none of the classes, for outlier exposure.
        outliers_without: names of folders inside `outliers` that are not used.
        teacher: bundle to learn from (distillation).
        average_with: state dict, checkpoint or bundle whose weights are averaged with the trained ones.
        average_share: of them in the mean, 0..1.
        limit: use only the first so many images of each part.
        cache: where decoded images of a folder are kept.
        resume: continue the run in `run`.
        ranks: the processes that train together. Rank 0 tests the network, writes and prints.

    Raises:
        SaveError: the bundle exists, has an unusable name or cannot be written, or `run` cannot be written or holds
            another run.
        DataError: the data set is missing or damaged, or `outliers` cannot be used.
        RecipeError: there is no such network, `init` is missing or of another network, or the checkpoint is of another
            recipe.
        TrainingError: there is no CUDA device or no checkpoint, or the loss is no longer finite.
    """
    check_new(out)
    checkpoint.check_folder(run)
    if not re.fullmatch(NAME_PATTERN, name or out.name):
        option = "give --name" if name else "end --out in"
        raise SaveError(f"the name {name or out.name!r} is not allowed: {option} letters, digits, dots, _ and - only")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("no CUDA device is available: use --device cpu or auto")
    if recipe.needs_init and init is None:
        raise RecipeError(
            f"the recipe {recipe.name!r} starts from trained weights: give --init a bundle, such as "
            "weights/resnet18-cifar10, or a state dict of torchvision or timm"
        )
    start = None if init is None else read_state_dict(init)
    other = None if average_with is None else read_state_dict(average_with, option="--average-with")
    if datasets.folder_of(data):
        if "holdout" in recipe.changed:
            raise RecipeError("--set holdout has no effect on a folder of images: set holdout_share, such as 0.2")
        recipe = replace(recipe, data="folder")
    report = _print if ranks.main else _ignore
    with ranks.main_first(), image_bar(hidden=not ranks.main) as progress:
        dataset = datasets.load_for(
            recipe, data, limit=limit, download=download, cache=cache, report=report, progress=progress
        )
    if other is not None:  # it must fit, which would otherwise be seen only after the training
        average(build(recipe.network, **recipe.network_arguments(len(dataset.labels))), other, average_share)
    others = None
    if outliers is not None:
        side = dataset.train.pixels.shape[1]
        others = load_outliers(outliers, side=side, without=outliers_without, generated_share=recipe.outlier_generated)
        report(f"outliers: {len(others):,}, skipped files: {others.about.unreadable:,}")
    guide = None
    if teacher is not None:
        guide = Teacher.from_bundle(teacher, recipe=recipe, labels=dataset.labels, device=device)
        report(f"teacher: {guide.about.name}, in {guide.about.precision} by {guide.about.engine}")
    cuda = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    recipe = _suited(recipe, place, report)
    result = _train(
        recipe,
        dataset,
        place,
        run,
        seed=seed,
        resume=resume,
        init=start,
        outliers=others,
        teacher=guide,
        ranks=ranks,
    )
    if not ranks.main:
        return

    if recipe.keep != "last":
        print(f"the weights of epoch {result.epoch} of {len(result.history)} are kept, by the held-out {recipe.keep}")
    if other is not None:
        average(result.net, other, average_share)
        result.about["average"] = {"sha256": other.sha256, "share": average_share}
    print(f"testing once, on {counted(len(dataset.test), 'image')}", flush=True)
    card = export(result, dataset, out, name=name or out.name, device=device)
    Console().print(class_table(card))
    print(f"test accuracy {card.metrics.top1:.2%}, expected calibration error {card.metrics.ece:.2%}")
    if 0 < len(dataset.holdout) < FEW_IMAGES:
        print(f"the probabilities and verdicts are rough: only {len(dataset.holdout):,} images were held out")
    print(f"wrote {out}", flush=True)
    sheet = run / "mistakes.png"
    _write_sheet(sheet, contact_sheet(card.metrics.mistakes, dataset.test), f"make it writable; {out} is complete")
    print(f"{sheet} shows the mistakes with the highest confidence", flush=True)


def _write_sheet(path: Path, contents: bytes, advice: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise SaveError(cannot_write(path, error, advice)) from error


def _suited(recipe: Recipe, device: torch.device, report: Callable[[str], None]) -> Recipe:
    """The recipe as the device can run it. Reports what it lacks."""
    if recipe.amp and not has_bfloat16(device):
        kind = "GPU" if device.type == "cuda" else "CPU"
        report(f"training in float32, because this {kind} has no bfloat16 instructions")
    if recipe.compile and (problem := why_not_compiled(device)):
        report(f"training without torch.compile, which cannot run here: {problem}")
        return replace(recipe, compile=False)
    return recipe


def why_not_compiled(device: torch.device) -> str | None:
    """Why torch.compile cannot run on a device, such as for want of a C++ compiler, or None if it can.

    The whole network would fail with hundreds of lines, so one addition is compiled first.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # the errors of its parts have no common base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None


def bundle_name(network: str, data: str) -> str:
    """The name of a bundle, such as resnet18-cifar10, without the characters that a name cannot have."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", f"{short_name(network)}-{data}").strip("-")


def _print(line: str) -> None:
    print(line, flush=True)


def _ignore(line: str) -> None: ...


def _train(
    recipe: Recipe,
    dataset: datasets.DataSet,
    device: torch.device,
    folder: Path,
    *,
    seed: int,
    resume: bool,
    init: Init | None,
    outliers: Outliers | None,
    teacher: Teacher | None,
    ranks: Ranks,
) -> Run:
    def show(batch: Tensor, classes: Tensor) -> None:
        images = denormalise(batch, recipe).cpu()
        sheet = batch_sheet(images, [dataset.labels[label] for label in classes.tolist()])
        _write_sheet(folder / "batch.png", sheet, "make it writable, or choose another --run")

    def with_progress(observer: Observer) -> Run:
        return train(
            recipe,
            dataset,
            device=device,
            seed=seed,
            folder=folder,
            observer=observer,
            resume=resume,
            init=init,
            outliers=outliers,
            teacher=teacher,
            ranks=ranks,
            show=show if ranks.main else None,
        )

    if not ranks.main:
        return with_progress(NoProgress())
    console = Console()
    if not console.is_terminal:
        return with_progress(LineProgress(recipe))
    bar = BarProgress(recipe, console)
    with bar.progress:
        return with_progress(bar)
