"""The training loop."""

import hashlib
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.engines.torch import has_bfloat16
from model.errors import RecipeError, SaveError, TrainingError
from model.image import test_transform
from model.nets.base import Network
from model.nets.check import check_network
from model.nets.zoo import build
from model.training import checkpoint
from model.training.augment import moved, normalise, scaled, training_batch
from model.training.batch_norm import synchronise_batch_norm
from model.training.data import DataSet, LabeledImages
from model.training.distill import Teacher, distillation_loss
from model.training.history import write_history
from model.training.matmul_conv import use_matmul_convolutions
from model.training.muon import Muon
from model.training.outliers import Outliers, uniform_cross_entropy, with_folder_classifier
from model.training.pretrained import Init, start_from
from model.training.probe import fit_classifier
from model.training.ranks import Ranks
from model.training.recipes import FIELD_DEFAULTS, Recipe

_SAVE_EVERY = 600.0
"""Seconds between two checkpoints of an unfinished epoch."""

# Added to an epoch's seed for the numbers that the network draws, so that they differ from those of the augmentation.
# PyTorch's generator on the CPU uses the lower 32 bits of a seed.
_NETWORK_STREAM = 2**31

# Added for each rank to the seed of the numbers that its network draws.
_RANK_STREAM = 2**20

# PyTorch refuses larger seeds.
_SEEDS = 2**63

# Images that the first classifier is fitted to, at most.
_PROBED = 10_000

# On a GPU, reading the loss waits for the step.
_STEPS_PER_LOSS = 20

# Fields of a recipe that change nothing in a run that has begun.
_NOT_IDENTITY = {"summary", "changed", "needs_init", "compile"}


class Observer(Protocol):
    """Receives the progress of a run."""

    def begin(self, done: float) -> None:
        """`done` is the finished fraction of the run, 0..1."""

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None: ...

    def epoch(self, record: dict[str, float]) -> None: ...


@dataclass(slots=True)
class Run:
    """The state of a run that the export needs.

    Attributes:
        recipe: as executed.
        net: the trained network, with the average of its weights if the recipe has one.
        epoch: number of the epoch, from 1, whose weights `net` has.
        history: one record per epoch: epoch (from 1), side, lr, train_loss, loss and accuracy of the watched part,
            seconds.
        seconds: wall time of training and evaluation after each epoch, in all processes that continued the run.
        about: seed, commit, device and library versions of the process that started the run.
    """

    recipe: Recipe
    net: Network
    history: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


def learning_rate(recipe: Recipe, epoch: int, fraction: float) -> float:
    """The learning rate of a step in an epoch (from 0), after the fraction 0..1 of the run."""
    if recipe.schedule == "multistep":
        return recipe.lr * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "piecewise":
        fractions, factors = zip(*recipe.points, strict=True)
        return recipe.lr * float(np.interp(fraction, fractions, factors))
    if fraction < recipe.warmup:
        return recipe.lr * (recipe.warmup_start + (1 - recipe.warmup_start) * fraction / recipe.warmup)
    left = (1 - fraction) / (1 - recipe.warmup)
    return recipe.lr * (left if recipe.schedule == "triangular" else 0.5 - 0.5 * math.cos(math.pi * left))


def train(
    recipe: Recipe,
    data: DataSet,
    *,
    device: torch.device,
    seed: int,
    folder: Path,
    observer: Observer,
    resume: bool = False,
    init: Init | None = None,
    outliers: Outliers | None = None,
    teacher: Teacher | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008, immutable
    save_every: float = _SAVE_EVERY,
    show: Callable[[Tensor, Tensor], None] | None = None,
) -> Run:
    """Train the recipe's network, and save the run to folder/checkpoint.pt after every epoch and every ten minutes.

    All random numbers of an epoch follow from the seed and the number of the epoch, so a resumed run has the same
    result as an uninterrupted one. That includes the random numbers of the network itself, such as for dropout:
    PyTorch's global generators are seeded at the start of each epoch, and their states are saved with an unfinished
    epoch.

    Every number of ranks has the same batches and augmentation, the same losses and the same BatchNorm statistics, up
    to rounding. Only the random numbers of the network itself differ between ranks. A run can be resumed by another
    number of ranks. Rank 0 writes the files.

    Args:
        recipe: to train.
        data: the network is trained on its training part. The part `recipe.watch` is evaluated after each epoch.
        device: to train on.
        seed: of the weights, the order and the augmentation.
        folder: of the checkpoint and of the history (`model.training.history`).
        observer: called after each step and epoch.
        resume: continue from the checkpoint.
        init: initial weights.
        outliers: images of none of the classes, for outlier exposure.
        teacher: of the distillation. It sees the augmented images of the classes, before progressive resizing.
        ranks: the processes that train together. All call this function with equal arguments.
        save_every: seconds between two checkpoints of an unfinished epoch.
        show: called with the first augmented batch of the run, normalised float32[N, 3, crop, crop], and its classes.

    Raises:
        SaveError: the folder contains a run already, or cannot be written.
        RecipeError: the network breaks the contract of model/nets/base.py, `init` belongs to another network, the
            checkpoint belongs to another recipe, seed or data set, or a batch has fewer images than there are ranks,
            or only one and the network cannot be trained on it, `recipe.freeze` names no layer or leaves none to
            train, or no images are held out to select an epoch.
        TrainingError: there is nothing to resume, or the loss of the training or the watched images is not finite.
    """
    saved = folder / "checkpoint.pt"
    if not resume and saved.exists():
        raise SaveError(f"{folder} contains a run already: continue with --resume, or choose another --run")
    if recipe.batch_size < ranks.size:
        raise RecipeError(
            f"a batch of {recipe.batch_size} cannot be split between {ranks.size} ranks: lower --nproc-per-node or set "
            "a larger batch_size"
        )

    if recipe.keep != "last" and not len(data.holdout):
        raise RecipeError(f"keep={recipe.keep} needs held-out images: hold out some, or --set keep=last")

    torch.manual_seed(seed)
    net = build(recipe.network, **recipe.network_arguments(len(data.labels)))
    check_network(
        net,
        recipe.input_spec(),
        num_classes=len(data.labels),
        sides=recipe.sides(),
        single=min(recipe.batch_size, recipe.epoch_images or recipe.batch_size, len(data.train)) == 1,
    )
    other_classes = init is not None and init.labels not in {None, data.labels}
    new_classifier = init is not None and not start_from(net, init.state, new_classifier=other_classes)
    folder_classifier = with_folder_classifier(net, outliers, recipe) if outliers else None
    if folder_classifier:
        folder_classifier.to(device)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches have the same few shapes
    if device.type == "cpu" and recipe.matmul_side:
        use_matmul_convolutions(net, recipe.matmul_side)
    if recipe.linear_probe and new_classifier and not resume:
        some = data.train[:_PROBED]
        class_weights = weights_of_classes(some.labels, len(data.labels), recipe.balance)
        fit_classifier(
            net, some.labels, lambda: evaluation_logits(net, some, recipe, device), class_weights=class_weights
        )
    ema = None
    if recipe.ema_decay:
        ema = moving_average(net, recipe.ema_decay)
    if ranks.joined:
        synchronise_batch_norm(net, device)
    frozen = frozen_modules(net, recipe)
    optimizers = optimizers_for(net, recipe)
    if folder_classifier:
        optimizers[0].add_param_group({"params": list(folder_classifier.classifier.parameters()), "scale": 1.0})
    scores = torch.full((len(data.train),), math.inf, device=device)
    identity = {
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in _NOT_IDENTITY},
        "seed": seed,
        "pictures": len(data.train),
        "labels": list(data.labels),
        "data": [data.sha256, *(added.sha256 for added in data.added)],
    }
    if outliers:
        identity["outliers"] = outliers.about.sha256
    if outliers and folder_classifier:
        identity["outlier_folders"] = hashlib.sha256(outliers.folders.numpy().tobytes()).hexdigest()
    if teacher:
        identity["teacher"] = teacher.about.sha256
    trained = cast(Network, ema.module) if ema else net
    run = Run(recipe, trained, about=describe(device, seed, init, outliers, teacher, ranks))
    unfinished: dict[str, Any] | None = None
    best: dict[str, Tensor] | None = None

    if resume:
        state = checkpoint.load(saved)
        refuse_another(state["identity"], identity, folder)
        net.load_state_dict(state["net"])
        if folder_classifier:
            folder_classifier.classifier.load_state_dict(state["folder_classifier"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        scores.copy_(state["scores"])
        if ema:
            ema.load_state_dict(state["ema"])
        run.history, run.seconds, run.about = state["history"], state["seconds"], state["about"]
        unfinished, best = state.get("unfinished"), state.get("best")

    replica = ranks.replicate(folder_classifier or net, device)
    model = torch.compile(replica) if recipe.compile else replica
    train_part = data.train.to(device)
    class_weights = weights_of_classes(train_part.labels, len(data.labels), recipe.balance)
    watched = data.holdout if recipe.watch == "holdout" else data.test
    generator = torch.Generator().manual_seed(seed)
    coin = torch.rand(len(train_part), generator=generator) < 0.5
    outliers = outliers.to(device) if outliers else None
    outlier_coin = torch.rand(len(outliers or ()), generator=generator) < 0.5

    def save(unfinished: dict[str, Any] | None) -> None:
        if not ranks.main:
            return
        checkpoint.save(
            saved,
            {
                "identity": identity,
                "net": net.state_dict(),
                "folder_classifier": folder_classifier.classifier.state_dict() if folder_classifier else None,
                "ema": ema.state_dict() if ema else None,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "scores": scores,
                "history": run.history,
                "seconds": run.seconds,
                "about": run.about,
                "unfinished": unfinished,
                "best": best,
            },
        )

    share = unfinished["steps"] / len(split_order(unfinished["order"], recipe.batch_size)) if unfinished else 0
    observer.begin((len(run.history) + share) / recipe.epochs)

    for epoch in range(len(run.history), recipe.epochs):
        if recipe.patience and epoch - best_epoch(run.history, recipe) >= recipe.patience:
            break
        began = saved_at = time.monotonic()
        own_seed = seed * 1_000_003 + epoch
        generator = torch.Generator().manual_seed(own_seed % _SEEDS)
        torch.manual_seed((own_seed + _NETWORK_STREAM + ranks.rank * _RANK_STREAM) % _SEEDS)
        if unfinished:
            order, weights, first = unfinished["order"], unfinished["weights"].to(device), unfinished["steps"]
            generator.set_state(unfinished["random"]["augmentation"])
            restore_random_states([unfinished["random"], *unfinished.get("other_ranks", [])], ranks, device)
            began -= unfinished["seconds"]
            unfinished = None
        else:
            order, weights = selection(scores, recipe, epoch=epoch, generator=generator)
            if class_weights is not None:
                weights *= class_weights[train_part.labels]
            first = 0
        net.train()
        for module in frozen:
            module.eval()
        recent = math.nan
        lr = 0.0
        batches = split_order(order, recipe.batch_size)
        side = recipe.side_at(epoch)
        for step, index in enumerate(batches):
            if step < first:
                continue
            exposed_count = max(1, round(len(index) * recipe.outlier_ratio)) if outliers else 0
            split = ranks.splitting(min(len(index), exposed_count) if outliers else len(index))
            part = split.part(len(index))
            lr = learning_rate(recipe, epoch, (epoch + step / len(batches)) / recipe.epochs)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["scale"]
            batch = training_batch(
                train_part.pixels, index, recipe, epoch=epoch, coin=coin, generator=generator, device=device, part=part
            )
            here = moved(index[part], device)
            if show and epoch == step == 0:
                show(batch, train_part.labels[here])
            teacher_logits = teacher.logits(batch, recipe) if teacher else None
            if outliers:
                drawn = torch.randint(len(outliers), (exposed_count,), generator=generator)
                exposed = training_batch(
                    outliers.pixels,
                    drawn,
                    recipe,
                    epoch=epoch,
                    coin=outlier_coin,
                    generator=generator,
                    part=split.part(exposed_count),
                )
                batch = torch.cat([batch, exposed])
            with autocast(recipe, device):
                outputs = model(scaled(batch, side)).float()
            class_outputs, folder_outputs = outputs.tensor_split([len(data.labels)], dim=1)
            logits, outlier_logits = class_outputs.tensor_split([len(here)])
            losses = F.cross_entropy(
                logits, train_part.labels[here], label_smoothing=recipe.label_smoothing, reduction="none"
            )
            if teacher_logits is not None:
                distilled = distillation_loss(logits, teacher_logits, recipe.teacher_temperature)
                losses = torch.lerp(losses, distilled, recipe.teacher_weight)
            loss = split.mean(losses * weights[here], len(index))
            if outliers:
                loss = loss + recipe.outlier_weight * split.mean(uniform_cross_entropy(outlier_logits), exposed_count)
            if outliers and folder_classifier:
                folders = outliers.folders[moved(drawn[split.part(exposed_count)], device)]
                folder_losses = F.cross_entropy(folder_outputs[len(here) :], folders, ignore_index=-1, reduction="none")
                loss = loss + recipe.outlier_folder_weight * split.mean(folder_losses, exposed_count)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            if ema:
                ema.update_parameters(net)
            losses = split.gather(losses.detach(), len(index))
            scores[moved(index, device)] = losses
            if device.type == "cpu" or (step - first) % _STEPS_PER_LOSS == 0:
                recent = ranks.average(loss)
            observer.step(
                epoch=epoch + 1,
                loss=recent,
                lr=lr,
                images=len(index),
                done=(epoch + (step + 1) / len(batches)) / recipe.epochs,
            )
            if step + 1 < len(batches) and ranks.agree(time.monotonic() - saved_at >= save_every):
                check_finite(losses.mean().item(), epoch)
                saved_at = time.monotonic()
                random, *others = ranks.collect(random_states(device))
                save(
                    {
                        "order": order,
                        "weights": weights,
                        "steps": step + 1,
                        "random": random | {"augmentation": generator.get_state()},
                        "other_ranks": others,
                        "seconds": saved_at - began,
                    }
                )

        ranks.follow(scores)  # all ranks compute a last batch of few images, with random numbers of their own
        trained = order.to(device)
        train_loss = (scores[trained] * weights[trained]).sum().item() / weights[trained].sum().item()
        check_finite(train_loss, epoch)
        record = {"epoch": epoch + 1, "side": side, "lr": lr, "train_loss": train_loss}
        if len(watched):
            split = ranks.splitting(len(watched))
            mine = watched[split.part(len(watched))]
            logits = split.gather(evaluation_logits(run.net, mine, recipe, device), len(watched))
            record["loss"] = F.cross_entropy(logits, watched.labels).item()
            check_finite(record["loss"], epoch, f"{recipe.watch} loss")
            record["accuracy"] = (logits.argmax(1) == watched.labels).float().mean().item()
        record["seconds"] = time.monotonic() - began
        run.history.append(record)
        run.seconds += record["seconds"]
        if recipe.keep != "last" and best_epoch(run.history, recipe) == epoch + 1:
            best = {name: value.detach().clone() for name, value in run.net.state_dict().items()}
        save(None)
        if ranks.main:
            write_history(folder, run.history)
        observer.epoch(record)

    run.epoch = best_epoch(run.history, recipe)
    if best:
        run.net.load_state_dict(best)
    run.net.eval()
    return run


def best_epoch(history: Sequence[Mapping[str, float]], recipe: Recipe) -> int:
    """The number of the epoch, from 1, whose weights `recipe.keep` selects; 0 before the first one.

    The first of equal ones is selected. Of epochs with equal accuracy, the loss decides.
    """
    if recipe.keep == "last":
        return len(history)
    scores = [(recipe.keep == "accuracy" and record["accuracy"], -record["loss"]) for record in history]
    return scores.index(max(scores)) + 1 if scores else 0


def frozen_modules(net: Network, recipe: Recipe) -> list[nn.Module]:
    """Exclude the recipe's frozen parameters from training. Returns the modules that must be in evaluation mode.

    Raises:
        RecipeError: `recipe.freeze` names no layer, or no parameter remains.
    """
    names = [name for name, _ in net.named_parameters()]
    layers = {layer: {name for name in names if f"{name}.".startswith(f"{layer}.")} for layer in recipe.freeze}
    if missing := [layer for layer, inside in layers.items() if not inside]:
        known = ", ".join(name for name, module in net.named_children() if any(True for _ in module.parameters()))
        raise RecipeError(f"the network has no layer {missing[0]!r} to freeze: choose from {known} and layers in them")
    frozen = set[str]().union(*layers.values())
    if recipe.backbone_lr == 0:
        frozen |= set(names) - net.classifier_keys()
    if len(frozen) == len(names):
        raise RecipeError("freeze leaves no parameter to train: freeze fewer layers")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return [
        module
        for module in net.modules()
        if (inside := list(module.parameters())) and not any(parameter.requires_grad for parameter in inside)
    ]


def moving_average(net: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of the weights of `net`. `update_parameters` of the result adds a step to it.

    The decay of step n, from 0, is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage. With a
    constant decay, the weights of the first step would keep a large share in a short run.
    """

    def update(averaged: Any, current: Any, steps: Any) -> None:
        # `steps` is on the device of the weights: reading it would wait for a GPU.
        done = int(ema.n_averaged)
        ramped = min(decay, (1 + done) / (10 + done))
        get_ema_multi_avg_fn(ramped)(averaged, current, steps)  # type: ignore[no-untyped-call]

    ema = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    return ema


def optimizers_for(net: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimizers of the trained parameters: SGD, and Muon for the `muon_parameters` if the recipe uses it.

    Each parameter group has a `scale`, by which the learning rate of the run is multiplied.
    """
    turned = set(net.muon_parameters()) if recipe.muon_lr else set()
    exempt = set(net.no_weight_decay()) - turned
    head = net.classifier_keys() if recipe.backbone_lr < 1 else set()
    filters: list[nn.Parameter] = []
    rest: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and name in turned:
            filters.append(parameter)
        elif parameter.requires_grad:
            rest.setdefault((name in head, name in exempt), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (of_head, without_decay), parameters in sorted(rest.items()):
        group = {"params": parameters, "scale": 1.0 if of_head else recipe.backbone_lr}
        groups.append(group | ({"weight_decay": 0.0} if without_decay else {}))
    sgd = torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    if not filters:
        return [sgd]
    muon = Muon(
        [{"params": filters, "scale": recipe.muon_lr / recipe.lr * recipe.backbone_lr}],
        lr=recipe.muon_lr,
        momentum=recipe.muon_momentum,
    )
    return [sgd, muon]


def selection(scores: Tensor, recipe: Recipe, *, epoch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The images of an epoch in random order, and the weights of their losses.

    Args:
        scores: the last loss of each image, float32[N]; infinite before the first one.
        recipe: its `prune` is the fraction of easy images to leave out.
        epoch: from 0.
        generator: on the CPU.

    Returns:
        The numbers of the images, int64[M] on the CPU, and the weights of all images, float32[N] on the device of
        `scores`. The easy images that remain have a larger weight, so that the expected gradient is that of all images.
    """
    order = torch.randperm(len(scores), generator=generator)
    weights = torch.ones_like(scores)
    if recipe.prune and 0 < epoch <= recipe.epochs * 7 / 8 - 1:
        easy = scores < scores[scores.isfinite()].mean()
        dropped = easy & (torch.rand(len(scores), generator=generator) < recipe.prune).to(scores.device)
        weights[easy] = 1 / (1 - recipe.prune)
        order = order[~dropped.cpu()[order]]
    return order[: recipe.epoch_images or None], weights


def split_order(order: Tensor, batch_size: int) -> list[Tensor]:
    """The batches of an epoch. A last batch of one image joins the one before it, because BatchNorm needs two."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def weights_of_classes(labels: Tensor, num_classes: int, balance: float) -> Tensor | None:
    """The weight of each class in the loss, so that rare classes count more.

    Args:
        labels: of the training images, int64[N].
        num_classes: C.
        balance: as in `Recipe`.

    Returns:
        float32[C] with a mean of 1 over the images, or None if all weights are equal.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    if balance == 0 or (counts == counts[0]).all():
        return None
    weights = counts.clamp(min=1) ** -balance
    return weights / weights[labels].mean()


def check_finite(loss: float, epoch: int, name: str = "loss") -> None:
    """Stop a run that has diverged, before it is saved.

    Raises:
        TrainingError: the loss is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise TrainingError(f"the {name} is no longer finite in epoch {epoch + 1}: lower the recipe's rate")


def refuse_another(was: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    """Refuse to resume a run with other options or other images.

    Args:
        was: the identity in the checkpoint. Those of earlier versions lack the classes and the hash of the images.
        identity: of the run that is to continue.
        folder: of the run, for the message.

    Raises:
        RecipeError: they differ.
    """
    was = {"labels": identity["labels"], "data": identity["data"], **was}
    recipe = {**FIELD_DEFAULTS, **was["recipe"]}
    was["recipe"] = {name: value for name, value in recipe.items() if name not in _NOT_IDENTITY}
    if was == identity:
        return
    kind = "with other options"
    if was["labels"] != identity["labels"]:
        differences = sorted({*was["labels"]} ^ {*identity["labels"]})
        kind = f"with other classes ({', '.join(differences[:5]) or 'in another order'})"
    elif was["data"] != identity["data"]:
        kind = "with other images"
    raise RecipeError(
        f"{folder} contains a run of recipe {recipe['name']!r} (seed {was['seed']}, {recipe['epochs']} epochs, "
        f"{was['pictures']} images) {kind}: resume it with the options and images that it started with, or choose "
        "another --run"
    )


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of PyTorch's global generators, which the network of this rank uses."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_states(states: Sequence[dict[str, Tensor]], ranks: Ranks, device: torch.device) -> None:
    """Restore what `random_states` of this rank has returned. A rank that the run did not have keeps its states."""
    if ranks.rank < len(states):
        own = states[ranks.rank]
        torch.set_rng_state(own["cpu"])
        if device.type == "cuda" and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], device)


@contextmanager
def autocast(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """bfloat16 if the recipe has it and the device has instructions for it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp and has_bfloat16(device)):
        yield


def evaluation_logits(net: nn.Module, images: LabeledImages, recipe: Recipe, device: torch.device) -> Tensor:
    """Logits of `net` in evaluation mode after the recipe's test transform, float32[N, C] on the CPU."""
    net.eval()
    spec = recipe.input_spec()
    size = max(1, 500 * 32 * 32 // recipe.crop**2)
    out = []
    with torch.inference_mode(), autocast(recipe, device):
        for start in range(0, len(images), size):
            pixels = images.pixels[start : start + size]
            if not pixels.shape[1] == pixels.shape[2] == spec.resize == spec.crop:
                transformed = [test_transform(Image.fromarray(image), spec) for image in pixels.numpy()]
                pixels = torch.from_numpy(np.stack(transformed))
            batch = normalise(pixels.to(device), recipe)
            out.append(net(batch).float().cpu())
    return torch.cat(out)


def describe(
    device: torch.device,
    seed: int,
    init: Init | None = None,
    outliers: Outliers | None = None,
    teacher: Teacher | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008, immutable
) -> dict[str, Any]:
    """The seed, the code, the hardware and the inputs of a run."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_name()}, {torch.get_num_threads()} threads"
    if ranks.size > 1:
        name = f"{ranks.size} x {name}"
    return {
        "seed": seed,
        "commit": git_commit(),
        "device": name,
        "torch": str(torch.__version__),
        "init_sha256": init.sha256 if init else None,
        "outliers": outliers.about.model_dump() if outliers else None,
        "teacher": teacher.about.model_dump() if teacher else None,
    }


def cpu_name() -> str:
    """The name of the processor, or of its architecture if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
