import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.bundle import open_bundle
from model.card import OutlierImages, TeacherBundle
from model.engines.base import Outputs
from model.engines.torch import TorchEngine, has_bfloat16
from model.errors import RecipeError, SaveError, TrainingError
from model.nets.zoo import build
from model.training import checkpoint
from model.training.augment import normalise
from model.training.data import CIFAR10_LABELS, DataSet, LabeledImages, load
from model.training.distill import Teacher, distillation_loss
from model.training.loop import (
    Observer,
    Run,
    autocast,
    best_epoch,
    evaluation_logits,
    learning_rate,
    moving_average,
    optimizers_for,
    selection,
    split_order,
    train,
    weights_of_classes,
)
from model.training.muon import Muon
from model.training.outliers import Outliers
from model.training.pretrained import Init
from model.training.recipes import Recipe, recipe_named
from tests.conftest import CPU, Silent
from tests.model.nets.plain import MixedNetwork, PlainCNN

SHORT = replace(
    recipe_named("smoke"), epochs=3, batch_size=40, sizes=((0, 16), (2, 32)), flip="alternating", matmul_side=4
)

QUICK = replace(SHORT, muon_lr=0.05, prune=0.5, zoom=1.2)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load("synthetic", Path(), holdout=20, limit=120)


def trained(recipe: Recipe, data: DataSet, folder: Path, observer: Observer | None = None, **options: Any) -> Run:
    options = {"seed": 3, **options}
    return train(recipe, data, device=torch.device("cpu"), folder=folder, observer=observer or Silent(), **options)


def others(grey: int = 128, count: int = 30) -> Outliers:
    """Images of one grey, in three folders."""
    about = OutlierImages(images=count, generated=0, without=["bus"], unreadable=0, sha256=f"{grey:064}")
    return Outliers(torch.full((count, 32, 32, 3), grey, dtype=torch.uint8), torch.arange(count) % 3, about)


def guide(tiny_bundle: Path) -> Teacher:
    return Teacher.from_bundle(tiny_bundle, recipe=SHORT, labels=CIFAR10_LABELS, device="cpu")


def flat(state: object, prefix: str = "") -> dict[str, object]:
    """Every leaf of a checkpoint by its path, without the times."""
    if isinstance(state, dict):
        pairs = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)  # type: ignore[assignment]
    else:
        return {prefix: state}
    return {
        key: leaf for name, part in pairs if name != "seconds" for key, leaf in flat(part, f"{prefix}/{name}").items()
    }


def same(a: object, b: object) -> bool:
    """Equal, tensors to the last bit."""
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


class StopsAt(Silent):
    """Ctrl-C after so many steps, or after so many epochs."""

    def __init__(self, *, steps: int = 10**9, epochs: int = 10**9) -> None:
        self.steps, self.epochs = steps, epochs
        self.images: list[int] = []

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None:
        self.images.append(images)
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt

    def epoch(self, record: dict[str, float]) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise KeyboardInterrupt


class Records(Silent):
    """Records all calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.losses: list[float | None] = []

    def begin(self, done: float) -> None:
        self.calls.append(done)

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None:
        self.calls.append((epoch, lr, images, done))
        self.losses.append(loss)

    def epoch(self, record: dict[str, float]) -> None:
        self.calls.append(record)


# The rate


@pytest.mark.parametrize(
    ("schedule", "fraction", "share"),
    [
        ("triangular", 0.0, 0.25),
        ("triangular", 0.1, 0.625),
        ("triangular", 0.2, 1.0),
        ("triangular", 0.6, 0.5),
        ("triangular", 1.0, 0.0),
        ("cosine", 0.0, 0.25),
        ("cosine", 0.2, 1.0),
        ("cosine", 0.4, 0.5 + 0.5 * math.sqrt(0.5)),
        ("cosine", 0.6, 0.5),
        ("cosine", 1.0, 0.0),
    ],
)
def test_the_rate_rises_to_its_maximum_and_falls_to_0(schedule: Any, fraction: float, share: float) -> None:
    recipe = replace(SHORT, schedule=schedule, lr=2.0, warmup=0.2, warmup_start=0.25)
    assert learning_rate(recipe, 0, fraction) == pytest.approx(2 * share, abs=1e-12)


def test_a_piecewise_rate_is_linear_between_its_points() -> None:
    recipe = replace(SHORT, schedule="piecewise", lr=2.0, points=((0.0, 0.2), (0.1, 1.0), (0.5, 0.6), (1.0, 0.0)))
    rates = [learning_rate(recipe, 0, fraction) for fraction in (0, 0.05, 0.1, 0.3, 0.5, 0.75, 1)]
    assert rates == pytest.approx([0.4, 1.2, 2.0, 1.6, 1.2, 0.6, 0.0])


def test_the_articles_rate_is_divided_by_ten_at_its_milestones() -> None:
    recipe = recipe_named("article")
    rates = [learning_rate(recipe, epoch, 0.5) for epoch in (0, 149, 150, 224, 225, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


# A run


def test_the_observer_is_called_after_every_step(data: DataSet, tmp_path: Path) -> None:
    observer = Records()
    recipe = replace(SHORT, epochs=2, lr=0.1, warmup=0.5, warmup_start=0.0)
    run = trained(recipe, data, tmp_path, observer)
    begin, *rest = observer.calls
    assert begin == 0
    assert [call for call in rest if isinstance(call, dict)] == run.history
    steps = [call for call in rest if isinstance(call, tuple)]
    assert [(epoch, images) for epoch, _, images, _ in steps] == [(1, 40)] * 3 + [(2, 40)] * 3
    assert [done for *_, done in steps] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert [lr for _, lr, _, _ in steps] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1, 0.2 / 3, 0.1 / 3])
    assert run.history[0].keys() == {"epoch", "side", "lr", "train_loss", "loss", "accuracy", "seconds"}


@pytest.mark.parametrize(
    "stop", [lambda: StopsAt(epochs=1), lambda: StopsAt(steps=5)], ids=["between epochs", "within an epoch"]
)
@pytest.mark.parametrize("recipe", [SHORT, QUICK], ids=["SGD", "Muon on a selection"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(
    recipe: Recipe, stop: Callable[[], StopsAt], data: DataSet, tmp_path: Path
) -> None:
    whole = trained(recipe, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data, tmp_path / "stopped", stop())
    observer = Records()
    resumed = trained(recipe, data, tmp_path / "stopped", observer, resume=True)
    assert observer.calls[0] == pytest.approx(1 / 3), "the first epoch is not repeated"
    assert len(resumed.history) == len(whole.history) == 3
    expected, found = (flat(checkpoint.load(tmp_path / name / "checkpoint.pt")) for name in ("whole", "stopped"))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not same(expected[key], found[key])] == []
    for one, other in zip(whole.net.state_dict().values(), resumed.net.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("own_networks")
def test_a_resumed_run_repeats_the_random_numbers_of_the_network(data: DataSet, tmp_path: Path) -> None:
    recipe = SHORT.with_network("mixed")  # it has dropout
    trained(recipe, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data, tmp_path / "stopped", StopsAt(epochs=1))
    torch.manual_seed(99)  # another process
    trained(recipe, data, tmp_path / "stopped", resume=True)
    expected, found = (flat(checkpoint.load(tmp_path / name / "checkpoint.pt")) for name in ("whole", "stopped"))
    assert [key for key in expected if not same(expected[key], found[key])] == []


@pytest.mark.usefixtures("own_networks")
@pytest.mark.parametrize(
    ("network", "outliers", "folder_weight"),
    [("resnet18", None, 0.0), ("mixed", others(), 0.0), ("resnet18", others(), 0.3)],
    ids=["classes only", "dropout and outliers", "folders of outliers"],
)
def test_a_run_resumes_within_an_epoch_that_was_saved_unfinished(
    network: str, outliers: Outliers | None, folder_weight: float, data: DataSet, tmp_path: Path
) -> None:
    recipe = replace(QUICK.with_network(network), outlier_folder_weight=folder_weight)
    whole = trained(recipe, data, tmp_path / "whole", outliers=outliers)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data, tmp_path / "stopped", StopsAt(steps=5), outliers=outliers, save_every=0)
    torch.manual_seed(99)  # another process
    observer = Records()
    resumed = trained(recipe, data, tmp_path / "stopped", observer, outliers=outliers, resume=True)
    assert 1 / 3 < observer.calls[0] < 2 / 3, "the first step of the second epoch was not done again"
    assert len(resumed.history) == len(whole.history) == 3
    expected, found = (flat(checkpoint.load(tmp_path / name / "checkpoint.pt")) for name in ("whole", "stopped"))
    assert [key for key in expected if not same(expected[key], found[key])] == []


def test_the_networks_random_numbers_differ_from_those_of_the_augmentation(data: DataSet, tmp_path: Path) -> None:
    drawn = []

    class Draws(StopsAt):
        def step(self, **values: Any) -> None:
            drawn.append(torch.get_rng_state())
            super().step(**values)

    with pytest.raises(KeyboardInterrupt):
        trained(SHORT, data, tmp_path, Draws(steps=1))
    assert not torch.equal(drawn[0], torch.Generator().manual_seed(3 * 1_000_003).get_state())
    assert torch.equal(drawn[0], torch.Generator().manual_seed(3 * 1_000_003 + 2**31).get_state())


@pytest.mark.usefixtures("own_networks")
@pytest.mark.parametrize("network", ["plain", "mixed"])
@pytest.mark.parametrize("change", [{}, {"muon_lr": 0.01, "amp": True}], ids=["SGD", "Muon in bfloat16"])
def test_a_network_that_is_no_resnet_is_trained(
    network: str, change: dict[str, Any], data: DataSet, tmp_path: Path
) -> None:
    run = trained(replace(SHORT, **change).with_network(network), data, tmp_path)
    assert [record["epoch"] for record in run.history] == [1, 2, 3]


@pytest.mark.parametrize("amp", [False, True])
def test_bfloat16_is_used_only_if_the_device_has_instructions_for_it(amp: bool) -> None:
    with autocast(replace(SHORT, amp=amp), CPU):
        found = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert found == (torch.bfloat16 if amp and has_bfloat16(CPU) else torch.float32)


@pytest.mark.usefixtures("own_networks")
def test_a_network_that_breaks_the_contract_is_not_trained(data: DataSet, tmp_path: Path) -> None:
    too_small = replace(SHORT, sizes=((0, 1), (2, 32))).with_network("plain")
    with pytest.raises(RecipeError, match="cannot run on images of 1 x 1 pixels"):
        trained(too_small, data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_of_a_short_time_is_saved_at_its_end_only(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(SHORT, data, tmp_path, StopsAt(steps=2), save_every=1e9)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_outliers_add_their_weighted_loss_to_the_first_step(data: DataSet, tmp_path: Path) -> None:
    start = build("resnet18", **SHORT.network_arguments(10)).state_dict()
    plain = replace(SHORT, epochs=1, batch_size=120, sizes=(), cutout=0, pad=0, matmul_side=0, outlier_ratio=0.25)
    # Equal to their mirror image, so that flips do not matter.
    symmetric = LabeledImages(torch.maximum(data.train.pixels, data.train.pixels.flip(2)), data.train.labels)
    data = replace(data, train=symmetric)
    losses = []
    for weight in (0.0, 0.5):
        observer = Records()
        recipe = replace(plain, outlier_weight=weight)
        init = Init({key: value.clone() for key, value in start.items()}, "a" * 64)
        trained(recipe, data, tmp_path / str(weight), observer, init=init, outliers=others())
        losses.append(observer.losses[0])
    net = build("resnet18", **SHORT.network_arguments(10))
    net.load_state_dict(start)
    pixels = torch.cat([symmetric.pixels, others(count=30).pixels])  # a quarter of 120
    with torch.no_grad():
        logits = net.train()(normalise(pixels, plain).contiguous(memory_format=torch.channels_last))
    of_classes = F.cross_entropy(logits[:120], symmetric.labels)
    of_others = F.cross_entropy(logits[120:], torch.full((30, 10), 0.1))
    assert losses == pytest.approx([of_classes.item(), (of_classes + 0.5 * of_others).item()], rel=1e-4)


def first_loss(recipe: Recipe, data: DataSet, folder: Path, outliers: Outliers) -> float:
    observer = Records()
    trained(replace(recipe, epochs=1), data, folder, observer, outliers=outliers)
    loss = observer.losses[0]
    assert loss is not None
    return loss


def test_the_folders_of_the_outliers_add_their_weighted_loss(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, batch_size=120, outlier_ratio=1.0)
    none, half, whole = (
        first_loss(replace(recipe, outlier_folder_weight=weight), data, tmp_path / str(weight), others())
        for weight in (0.0, 0.5, 1.0)
    )
    assert whole - none == pytest.approx(2 * (half - none), rel=1e-3)
    assert whole - none == pytest.approx(math.log(3), abs=0.5), "the folders are not known yet"


def test_generated_outliers_have_no_folder(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, batch_size=120, outlier_ratio=1.0, outlier_folder_weight=1.0)
    plain = first_loss(replace(recipe, outlier_folder_weight=0.0), data, tmp_path / "plain", others())
    images = others()
    generated = replace(images, folders=torch.where(torch.arange(30) < 2, torch.arange(30), -1))
    known = first_loss(recipe, data, tmp_path / "known", images) - plain
    assert first_loss(recipe, data, tmp_path / "generated", generated) - plain < 0.3 * known


def test_the_classifier_of_folders_is_trained_but_is_no_part_of_the_network(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1, outlier_folder_weight=1.0)
    states = []
    for epochs in (1, 2):
        trained(recipe.lasting(epochs), data, tmp_path / str(epochs), outliers=others())
        states.append(checkpoint.load(tmp_path / str(epochs) / "checkpoint.pt"))
    first, second = (state["folder_classifier"]["weight"] for state in states)
    assert first.shape == (3, 128)
    assert not torch.equal(first, second)
    assert set(states[0]["net"]) == set(build("resnet18", **SHORT.network_arguments(10)).state_dict())


def test_a_classifier_of_folders_needs_two_of_them(data: DataSet, tmp_path: Path) -> None:
    one = replace(others(), folders=torch.zeros(30, dtype=torch.int64))
    with pytest.raises(RecipeError, match="outlier_folder_weight needs outliers in two or more folders"):
        trained(replace(SHORT, outlier_folder_weight=0.1), data, tmp_path, outliers=one)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_begins_as_on_the_cpu(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(
        SHORT,
        lr=0.01,
        zoom=1.2,
        shift=0.5,
        rotation=10.0,
        sharpness=0.3,
        colour=0.2,
        muon_lr=0.001,
        outlier_folder_weight=0.3,
    )
    runs = {}
    for name in ("cpu", "cuda"):
        observer = Records()
        run = train(
            recipe,
            data,
            device=torch.device(name),
            seed=3,
            folder=tmp_path / name,
            observer=observer,
            outliers=others(),
        )
        runs[name] = run.history
        assert next(run.net.parameters()).device.type == name
    for on_cpu, on_gpu in zip(runs["cpu"], runs["cuda"], strict=True):
        assert on_gpu["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=0.05)


def test_a_run_keeps_what_is_known_of_its_outliers(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    run = trained(recipe, data, tmp_path / "with", outliers=others())
    assert OutlierImages(**run.about["outliers"]) == others().about
    assert trained(recipe, data, tmp_path / "without").about["outliers"] is None


def test_the_loss_of_the_first_step_is_between_those_of_the_labels_and_of_the_teacher(
    data: DataSet, tiny_bundle: Path, tmp_path: Path
) -> None:
    start = build("resnet18", **SHORT.network_arguments(10)).state_dict()
    plain = replace(SHORT, epochs=1, batch_size=120, sizes=(), cutout=0, pad=0, matmul_side=0, teacher_weight=0.75)
    # Equal to their mirror image, so that flips do not matter.
    symmetric = LabeledImages(torch.maximum(data.train.pixels, data.train.pixels.flip(2)), data.train.labels)
    teacher = guide(tiny_bundle)
    observer = Records()
    init = Init({key: value.clone() for key, value in start.items()}, "a" * 64)
    trained(plain, replace(data, train=symmetric), tmp_path, observer, init=init, teacher=teacher)
    net = build("resnet18", **SHORT.network_arguments(10))
    net.load_state_dict(start)
    batch = normalise(symmetric.pixels, plain).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = net.train()(batch)
    of_labels = F.cross_entropy(logits, symmetric.labels)
    of_teacher = distillation_loss(logits, teacher.logits(batch, plain), 3.0).mean()
    assert observer.losses[0] == pytest.approx((0.25 * of_labels + 0.75 * of_teacher).item(), rel=1e-3)


def test_the_teacher_sees_whole_images_of_the_classes_only(data: DataSet, tiny_bundle: Path, tmp_path: Path) -> None:
    seen = []

    class Watched(TorchEngine):
        def run(self, pixels: NDArray[np.uint8]) -> Outputs:
            seen.append(pixels.shape)
            return super().run(pixels)

    bundle = open_bundle(tiny_bundle)
    teacher = replace(guide(tiny_bundle), engine=Watched.from_bundle(bundle, device="cpu"))
    seen.clear()
    run = trained(replace(SHORT, epochs=2), data, tmp_path, outliers=others(), teacher=teacher)
    assert run.history[0]["side"] == 16
    assert seen == [(40, 32, 32, 3)] * 6


def test_a_run_keeps_what_is_known_of_its_teacher(data: DataSet, tiny_bundle: Path, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    teacher = guide(tiny_bundle)
    run = trained(recipe, data, tmp_path / "with", teacher=teacher)
    assert TeacherBundle(**run.about["teacher"]) == teacher.about
    with pytest.raises(RecipeError, match=r"contains a run of recipe 'smoke' .* with other options"):
        trained(recipe, data, tmp_path / "with", resume=True)
    assert trained(recipe, data, tmp_path / "without").about["teacher"] is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "b" * 64}, "with other images: resume it with the options and images"),
        ({"labels": (*CIFAR10_LABELS[1:], "zebra")}, r"with other classes \(airplane, zebra\)"),
        ({"labels": CIFAR10_LABELS[::-1]}, r"with other classes \(in another order\)"),
    ],
)
def test_a_run_is_not_resumed_with_other_images(
    change: dict[str, Any], reason: str, data: DataSet, tmp_path: Path
) -> None:
    data, recipe = replace(data, sha256="a" * 64), replace(SHORT, epochs=1)
    trained(recipe, data, tmp_path)
    with pytest.raises(RecipeError, match=reason):
        trained(recipe, replace(data, **change), tmp_path, resume=True)


def test_a_run_is_resumed_after_its_recipe_was_reworded(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    trained(recipe, data, tmp_path)
    assert trained(replace(recipe, summary="as before", changed=("lr",)), data, tmp_path, resume=True).history
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    state["identity"] = {key: value for key, value in state["identity"].items() if key not in ("labels", "data")}
    state["identity"]["recipe"] |= {"summary": "of an earlier version", "needs_init": True}
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    assert trained(recipe, data, tmp_path, resume=True).history
    with pytest.raises(RecipeError, match="with other options"):
        trained(replace(recipe, lr=0.2), data, tmp_path, resume=True)


def test_a_loss_of_the_held_out_images_that_is_not_finite_ends_the_run(data: DataSet, tmp_path: Path) -> None:
    state = build("resnet18", **SHORT.network_arguments(10)).state_dict()
    state["bn1.running_var"].fill_(-1)  # training does not read it
    with pytest.raises(TrainingError, match="the holdout loss is no longer finite in epoch 1: lower the recipe's rate"):
        trained(SHORT, data, tmp_path, init=Init(state, "a" * 64))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_seed_may_be_a_time(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    for number, seed in enumerate((20261104123456, 2**63 - 1)):
        assert trained(recipe, data, tmp_path / str(number), seed=seed).about["seed"] == seed


def test_batches_of_one_image_are_refused_if_batch_norm_has_one_value(data: DataSet, tmp_path: Path) -> None:
    few = replace(data, train=data.train[:3])
    recipe = replace(SHORT, epochs=1, batch_size=1, sizes=(), arguments={"stem": "imagenet", "width": 8})
    with pytest.raises(RecipeError, match=r"batches of one image of 32 x 32 pixels, .* set a larger batch_size"):
        trained(recipe, few, tmp_path)
    with pytest.raises(RecipeError, match="or add images"):
        trained(replace(recipe, batch_size=40), replace(data, train=data.train[:1]), tmp_path)
    assert trained(replace(recipe, arguments={"stem": "cifar", "width": 8}), few, tmp_path).history


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_first_step_after_a_resume_has_a_loss(data: DataSet, tmp_path: Path) -> None:
    for observer, resume in ((StopsAt(steps=2), False), (Records(), True)):
        with contextlib.suppress(KeyboardInterrupt):
            train(
                SHORT, data, device=torch.device("cuda"), seed=3, folder=tmp_path, observer=observer, resume=resume,
                save_every=0,
            )  # fmt: skip
    assert isinstance(observer, Records)
    assert all(loss is not None and math.isfinite(loss) for loss in observer.losses)


def test_another_seed_gives_another_run(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    losses = [trained(recipe, data, tmp_path / str(seed), seed=seed).history[0]["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_the_average_is_that_of_the_steps(data: DataSet, tmp_path: Path) -> None:
    # One step an epoch at a constant rate: the first epoch of both runs is the same.
    one = replace(SHORT, epochs=1, batch_size=120, schedule="multistep", sizes=(), ema_decay=0.9)
    trained(one, data, tmp_path / "one")
    run = trained(replace(one, epochs=2), data, tmp_path / "two")
    first = checkpoint.load(tmp_path / "one" / "checkpoint.pt")["net"]
    second = checkpoint.load(tmp_path / "two" / "checkpoint.pt")["net"]
    for key in ("conv1.weight", "fc.bias", "bn1.running_mean"):
        assert not torch.equal(first[key], second[key])
        torch.testing.assert_close(run.net.state_dict()[key], 2 / 11 * first[key] + 9 / 11 * second[key])


def test_the_decay_of_the_average_rises_so_that_the_first_weights_are_forgotten() -> None:
    net = torch.nn.Linear(1, 1)
    ema = moving_average(net, 0.98)
    expected = 0.0
    for step in range(600):
        with torch.no_grad():
            net.weight.fill_(step)
        ema.update_parameters(net)
        decay = min(0.98, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert next(ema.module.parameters()).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert step - expected == pytest.approx(0.98 / 0.02, rel=0.01), "the decay has reached 0.98"


def test_without_an_average_the_network_itself_is_kept(data: DataSet, tmp_path: Path) -> None:
    run = trained(replace(SHORT, epochs=1, ema_decay=0.0), data, tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state["ema"] is None
    assert all(torch.equal(tensor, state["net"][key]) for key, tensor in run.net.state_dict().items())
    assert not run.net.training


def test_the_initial_weights_are_used(data: DataSet, tmp_path: Path) -> None:
    first = trained(replace(SHORT, epochs=1, ema_decay=0.0), data, tmp_path / "first")
    start = {key: tensor.clone() for key, tensor in first.net.state_dict().items()}
    still = replace(SHORT, epochs=1, lr=0.0, ema_decay=0.0, weight_decay=0.0)
    second = trained(still, data, tmp_path / "second", init=Init(start, "a" * 64))
    assert (first.about["init_sha256"], second.about["init_sha256"]) == (None, "a" * 64)
    for name, parameter in second.net.named_parameters():
        assert torch.equal(parameter, start[name]), name


# The optimizers


def test_without_a_rate_for_muon_sgd_trains_all_parameters() -> None:
    net = build("resnet18", width=8)
    (sgd,) = optimizers_for(net, SHORT)
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in net.parameters()]
    assert group["scale"] == 1


def test_muon_trains_the_filters_and_sgd_the_rest() -> None:
    net = build("resnet18", width=8, conv_bias=True)
    sgd, muon = optimizers_for(net, replace(SHORT, lr=0.5, muon_lr=0.05, muon_momentum=0.7))
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(muon, Muon)
    ids = {
        name: {id(weight) for weight in optimizer.param_groups[0]["params"]}
        for name, optimizer in (("sgd", sgd), ("muon", muon))
    }
    for name, weight in net.named_parameters():
        filters = "conv" in name or "downsample.0" in name
        kind = "muon" if filters and name.endswith("weight") else "sgd"
        assert id(weight) in ids[kind], name
    assert not ids["sgd"] & ids["muon"]
    assert muon.param_groups[0]["scale"] == pytest.approx(0.1)
    assert muon.param_groups[0]["momentum"] == 0.7


def test_the_rate_of_muon_is_proportional_to_the_runs(data: DataSet, tmp_path: Path) -> None:
    run = trained(replace(SHORT, muon_lr=0.05, sizes=((0, 16), (5, 32))), data, tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.pt")["optimizers"]
    rates = [optimizer["param_groups"][0]["lr"] for optimizer in saved]
    assert rates[0] == pytest.approx(run.history[-1]["lr"])
    assert rates[1] == pytest.approx(0.05 / 0.1 * run.history[-1]["lr"])
    norm = checkpoint.load(tmp_path / "checkpoint.pt")["net"]["layer4.1.conv2.weight"].norm()
    assert norm == pytest.approx(128**0.5, rel=0.1), "the square root of the channels"


def test_the_network_exempts_parameters_from_weight_decay() -> None:
    net = MixedNetwork()
    (sgd,) = optimizers_for(net, replace(SHORT, weight_decay=0.3))
    decays = {id(parameter): group["weight_decay"] for group in sgd.param_groups for parameter in group["params"]}
    for name, parameter in net.named_parameters():
        assert decays.pop(id(parameter)) == (0 if name == "scale" else 0.3), name
    assert not decays
    assert all(group["scale"] == 1 for group in sgd.param_groups)


def test_muon_without_filters_is_sgd_alone() -> None:
    class Linear(PlainCNN):
        def muon_parameters(self) -> set[str]:
            return set()

    (sgd,) = optimizers_for(Linear(), replace(SHORT, muon_lr=0.05))
    assert isinstance(sgd, torch.optim.SGD)


def test_the_backbone_has_a_lower_rate_or_is_frozen(data: DataSet, tmp_path: Path) -> None:
    net = MixedNetwork()
    recipe = replace(SHORT, weight_decay=0.3, backbone_lr=0.1)
    (sgd,) = optimizers_for(net, recipe)
    groups = {
        id(each): (group["scale"], group["weight_decay"]) for group in sgd.param_groups for each in group["params"]
    }
    for name, parameter in net.named_parameters():
        scale = 1.0 if name in net.classifier_keys() else 0.1
        assert groups.pop(id(parameter)) == (scale, 0 if name == "scale" else 0.3), name
    assert not groups
    assert optimizers_for(build("resnet18", width=8), replace(recipe, muon_lr=0.05))[1].param_groups[0][
        "scale"
    ] == pytest.approx(0.05 / SHORT.lr * 0.1)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"backbone_lr": 0.0}, ("",)),
        ({"freeze": ("conv1", "bn1", "layer1.0"), "muon_lr": 0.05}, ("conv1.", "bn1.", "layer1.0.")),
    ],
)
def test_frozen_layers_keep_their_weights_and_statistics(
    changes: dict[str, Any], names: tuple[str, ...], data: DataSet, tmp_path: Path
) -> None:
    recipe = replace(SHORT, epochs=1, **changes)
    before = build(recipe.network, **recipe.network_arguments(10)).state_dict()
    net = trained(recipe, data, tmp_path, init=Init(before, "0" * 64)).net
    for name, value in net.state_dict().items():
        frozen = name.startswith(names) and not name.startswith("fc.")
        assert torch.equal(value, before[name]) is frozen, name


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [
        (("layer9",), "the network has no layer 'layer9' to freeze: choose from conv1, bn1, layer1, .* fc and layers"),
        (("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"), "freeze leaves no parameter to train"),
    ],
)
def test_layers_that_cannot_be_frozen_are_refused(
    freeze: tuple[str, ...], sentence: str, data: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        trained(replace(SHORT, freeze=freeze), data, tmp_path)


# The best epoch


@pytest.mark.parametrize(("keep", "best"), [("last", 4), ("loss", 2), ("accuracy", 3)])
def test_the_best_epoch_is_the_first_one_with_the_best_value(keep: Any, best: int) -> None:
    values = [(0.5, 0.6), (0.3, 0.7), (0.4, 0.8), (0.5, 0.8)]
    history = [{"loss": loss, "accuracy": accuracy} for loss, accuracy in values]
    recipe = replace(SHORT, keep=keep)
    assert best_epoch(history, recipe) == best
    assert best_epoch([], recipe) == 0


def test_the_weights_of_the_best_epoch_are_kept_and_the_run_ends_early(data: DataSet, tmp_path: Path) -> None:
    """Only the classifier is trained, and so fast from the third epoch that the loss is large on any machine."""
    recipe = replace(
        SHORT, epochs=9, sizes=(), ema_decay=0.0, backbone_lr=0.0, lr=0.01, keep="loss", patience=2,
        schedule="piecewise", points=((0.0, 1.0), (0.22, 1.0), (0.23, 1e6), (1.0, 1e6)),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data, tmp_path, StopsAt(epochs=3))
    run = trained(recipe, data, tmp_path, resume=True)
    assert run.epoch < 3
    assert len(run.history) == run.epoch + 2
    logits = evaluation_logits(run.net, data.holdout, recipe, CPU)
    loss = F.cross_entropy(logits, data.holdout.labels).item()
    assert loss == pytest.approx(run.history[run.epoch - 1]["loss"])
    assert loss < run.history[-1]["loss"]
    again = trained(recipe, data, tmp_path, resume=True)
    assert again.history == run.history, "a run that has ended early is not continued"
    assert all(torch.equal(one, other) for one, other in zip(again.net.parameters(), run.net.parameters(), strict=True))


def test_without_held_out_images_no_epoch_is_selected(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="keep=loss needs held-out images"):
        trained(replace(SHORT, keep="loss"), load("synthetic", Path(), holdout=0, limit=40), tmp_path)


# The selection

LOSSES = torch.rand(200, generator=torch.Generator().manual_seed(0)) ** 2
PRUNED = replace(SHORT, epochs=16, prune=0.5)


def selected(epoch: int = 5, recipe: Recipe = PRUNED, seed: int = 0) -> tuple[Tensor, Tensor]:
    return selection(LOSSES, recipe, epoch=epoch, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("epoch", "prune", "complete"), [(0, 0.5, True), (1, 0.5, False), (13, 0.5, False), (14, 0.5, True),
                                     (15, 0.5, True), (5, 0.0, True)],
)  # fmt: skip
def test_the_first_epoch_and_the_last_eighth_are_complete(epoch: int, prune: float, complete: bool) -> None:
    order, weights = selected(epoch, replace(PRUNED, prune=prune))
    assert (len(order) == 200) is complete
    assert bool((weights == 1).all()) is complete
    if complete:
        assert order.sort().values.tolist() == list(range(200))
        assert order.tolist() != list(range(200))


def test_images_without_a_loss_are_all_selected() -> None:
    order, weights = selection(torch.full((50,), math.inf), PRUNED, epoch=0, generator=torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(50))
    assert (weights == 1).all()


def test_only_easy_images_are_left_out_and_the_order_is_random() -> None:
    order, weights = selected()
    kept = order.tolist()
    assert len(set(kept)) == len(kept)
    easy = {number for number in range(200) if LOSSES[number] < LOSSES.mean()}
    dropped = set(range(200)) - set(kept)
    assert dropped < easy
    assert 0.35 * len(easy) < len(dropped) < 0.65 * len(easy)
    assert weights.tolist() == [2 if number in easy else 1 for number in range(200)]
    assert kept != sorted(kept)
    assert order.dtype == torch.int64


def test_an_epoch_of_some_images_draws_others_each_time() -> None:
    few = replace(PRUNED, epoch_images=50)
    first, _ = selected(0, few, seed=0)
    second, _ = selected(0, few, seed=1)
    assert len(set(first.tolist())) == len(set(second.tolist())) == 50
    assert set(first.tolist()) != set(second.tolist())
    assert torch.equal(selected(5, few)[0], selected()[0][:50]), "after easy images were left out"


def test_images_without_a_loss_are_not_easy() -> None:
    scores = torch.where(torch.arange(200) % 2 == 0, LOSSES, math.inf)
    order, weights = selection(scores, PRUNED, epoch=5, generator=torch.Generator().manual_seed(0))
    assert set(order.tolist()) >= set(range(1, 200, 2))
    easy = scores < LOSSES[::2].mean()
    assert weights.tolist() == [2 if flag else 1 for flag in easy.tolist()]


def test_the_generator_decides_the_selection() -> None:
    assert torch.equal(selected()[0], selected()[0])
    other = selected(seed=1)[0]
    assert sorted(other.tolist()) != sorted(selected()[0].tolist())


@pytest.mark.parametrize("prune", [0.3, 0.5, 0.8])
def test_the_mean_weight_of_every_image_is_1(prune: float) -> None:
    generator = torch.Generator().manual_seed(0)
    total, times = torch.zeros(200), 2000
    for _ in range(times):
        order, weights = selection(LOSSES, replace(PRUNED, prune=prune), epoch=5, generator=generator)
        total[order] += weights[order]
    spread = (prune / (1 - prune) / times) ** 0.5  # standard deviation of the mean weight of an easy image
    assert (total / times - 1).abs().max() < 5 * spread
    hard = LOSSES.ge(LOSSES.mean())
    assert (total[hard] == times).all()


def test_a_run_trains_on_the_selection_and_keeps_the_losses_of_the_others(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=8, prune=0.9, sizes=())
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data, folder, StopsAt(epochs=1))
    state = checkpoint.load(folder / "checkpoint.pt")
    # Fixed losses, so that the selection of the next epoch does not depend on the first one.
    state["scores"] = torch.tensor([0.0, 8.0]).repeat(60)
    checkpoint.save(folder / "checkpoint.pt", state)
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 1)
    order, _ = selection(state["scores"], recipe, epoch=1, generator=generator)
    observer = StopsAt(epochs=1)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data, folder, observer, resume=True)
    assert sum(observer.images) == len(order) < 100
    scores = checkpoint.load(folder / "checkpoint.pt")["scores"]
    left_out = torch.ones(120, dtype=torch.bool).index_fill(0, order, False)
    assert (scores[left_out] == 0).all(), "their last loss"
    assert not ((scores[~left_out] == 0) | (scores[~left_out] == 8)).any(), "a new loss"


def test_the_training_loss_of_a_complete_epoch_is_the_mean_of_its_losses(data: DataSet, tmp_path: Path) -> None:
    run = trained(replace(SHORT, epochs=1, prune=0.9), data, tmp_path)
    scores = checkpoint.load(tmp_path / "checkpoint.pt")["scores"]
    assert scores.shape == (120,)
    assert scores.mean().item() == pytest.approx(run.history[0]["train_loss"], rel=1e-5)


def mapped(images: LabeledImages, path: Path) -> LabeledImages:
    """The same images from a read-only file."""
    path.write_bytes(images.pixels.numpy().tobytes())
    pixels = np.memmap(path, np.uint8, "r", shape=tuple(images.pixels.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LabeledImages(torch.from_numpy(pixels), images.labels, mapped=True)


def test_memory_mapped_images_give_the_same_weights(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    files = replace(data, train=mapped(data.train, tmp_path / "a"), holdout=mapped(data.holdout, tmp_path / "b"))
    ours, theirs = (trained(recipe, each, tmp_path / name) for name, each in (("memory", data), ("file", files)))
    assert all(
        same(a, b) for a, b in zip(ours.net.state_dict().values(), theirs.net.state_dict().values(), strict=True)
    )
    assert ours.history[0]["accuracy"] == theirs.history[0]["accuracy"]


def test_rare_classes_weigh_more() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    for balance, ratio in ((0.5, 3), (1.0, 9)):
        weights = weights_of_classes(labels, 2, balance)
        assert weights is not None
        assert (weights[1] / weights[0]).item() == pytest.approx(ratio)
        assert weights[labels].mean().item() == pytest.approx(1)
    assert weights_of_classes(labels, 2, 0.0) is None
    assert weights_of_classes(torch.tensor([0, 1] * 7), 2, 1.0) is None, "all classes have as many images"
    missing = weights_of_classes(labels, 3, 1.0)
    assert missing is not None
    assert missing.isfinite().all()


def test_the_weights_of_classes_are_in_the_loss(data: DataSet, tmp_path: Path) -> None:
    rare = replace(data, train=data.train[torch.cat([torch.arange(30), torch.arange(30, 120, 10)])])
    recipe = replace(SHORT, epochs=1)
    even, uneven = (trained(replace(recipe, balance=each), rare, tmp_path / str(each)) for each in (0.0, 1.0))
    assert even.history[0]["train_loss"] != uneven.history[0]["train_loss"]


def test_no_batch_has_one_image_only() -> None:
    assert [len(batch) for batch in split_order(torch.arange(9), 4)] == [4, 5]
    assert [len(batch) for batch in split_order(torch.arange(10), 4)] == [4, 4, 2]
    assert [len(batch) for batch in split_order(torch.arange(1), 4)] == [1]
    assert torch.cat(split_order(torch.arange(9), 4)).tolist() == list(range(9))


# What is refused


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": replace(SHORT, lr=0.2)},
        {"recipe": SHORT.lasting(4)},
        {"seed": 4},
        {"limit": 60},
        {"outliers": others(129)},
        {"outliers": None},
    ],
    ids=["rate", "epochs", "seed", "images", "outliers", "no outliers"],
)
def test_a_run_is_only_resumed_with_its_own_options(change: dict[str, Any], data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(SHORT, data, tmp_path, StopsAt(epochs=1), outliers=others())
    before = (tmp_path / "checkpoint.pt").read_bytes()
    if "limit" in change:
        data = load("synthetic", Path(), holdout=20, limit=change["limit"])
    with pytest.raises(RecipeError, match=r"contains a run of recipe 'smoke' \(seed 3, 3 epochs, 120 images\)"):
        trained(
            change.get("recipe", SHORT),
            data,
            tmp_path,
            seed=change.get("seed", 3),
            outliers=change.get("outliers", others()),
            resume=True,
        )
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_code_with_fewer_fields_is_resumed(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(SHORT, data, tmp_path, StopsAt(epochs=2))
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    del state["identity"]["recipe"]["colour"]
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    assert len(trained(replace(SHORT, needs_init=True), data, tmp_path, resume=True).history) == 3


def test_without_a_checkpoint_there_is_nothing_to_resume(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        trained(SHORT, data, tmp_path, resume=True)


def test_a_run_in_the_folder_is_never_overwritten(data: DataSet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", {"precious": 1})
    with pytest.raises(SaveError, match="contains a run already: continue with --resume, or choose another --run"):
        trained(SHORT, data, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt") == {"precious": 1}


@pytest.mark.parametrize("save_every", [0, 1e9], ids=["within an epoch", "after an epoch"])
def test_a_loss_that_is_not_finite_ends_the_run(save_every: float, data: DataSet, tmp_path: Path) -> None:
    net = build("resnet18", **SHORT.network_arguments(10))
    init = Init({name: value * math.nan for name, value in net.state_dict().items()}, "a" * 64)
    with pytest.raises(TrainingError, match="no longer finite in epoch 1"):
        trained(SHORT, data, tmp_path, save_every=save_every, init=init)
    assert not (tmp_path / "checkpoint.pt").exists(), "a network that diverged is not saved"
