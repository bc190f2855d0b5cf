import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import RecipeError, SaveError, TrainingError
from model.training import checkpoint
from model.training.data import DataSet, load
from model.training.loop import Observer, Run, learning_rate, train
from model.training.recipes import Recipe, recipe_named
from tests.conftest import Silent

SHORT = replace(
    recipe_named("smoke"), epochs=3, batch_size=40, sizes=((0, 16), (2, 32)), flip="alternating", matmul_side=4
)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load("synthetic", Path(), holdout=20, limit=120)


def trained(recipe: Recipe, data: DataSet, folder: Path, observer: Observer | None = None, **options: Any) -> Run:
    options = {"seed": 3, **options}
    return train(recipe, data, device=torch.device("cpu"), folder=folder, observer=observer or Silent(), **options)


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

    def step(self, *, epoch: int, loss: float | None, lr: float, pictures: int, done: float) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt

    def epoch(self, record: dict[str, float]) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise KeyboardInterrupt


class Listens(Silent):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, done: float) -> None:
        self.told.append(done)

    def step(self, *, epoch: int, loss: float | None, lr: float, pictures: int, done: float) -> None:
        self.told.append((epoch, lr, pictures))

    def epoch(self, record: dict[str, float]) -> None:
        self.told.append(record)


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
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(schedule: Any, fraction: float, share: float) -> None:
    recipe = replace(SHORT, schedule=schedule, lr=2.0, warmup=0.2, warmup_start=0.25)
    assert learning_rate(recipe, 0, fraction) == pytest.approx(2 * share, abs=1e-12)


def test_the_articles_rate_drops_tenfold_at_its_milestones() -> None:
    recipe = recipe_named("article")
    rates = [learning_rate(recipe, epoch, 0.5) for epoch in (0, 149, 150, 224, 225, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


# A run


def test_the_observer_is_told_of_every_step(data: DataSet, tmp_path: Path) -> None:
    listener = Listens()
    recipe = replace(SHORT, epochs=2, lr=0.1, warmup=0.5, warmup_start=0.0)
    run = trained(recipe, data, tmp_path, listener)
    begin, *rest = listener.told
    assert begin == 0
    assert [told for told in rest if isinstance(told, dict)] == run.history
    steps = [told for told in rest if isinstance(told, tuple)]
    assert [(epoch, pictures) for epoch, _, pictures in steps] == [(1, 40)] * 3 + [(2, 40)] * 3
    assert [lr for _, lr, _ in steps] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1, 0.2 / 3, 0.1 / 3])
    assert run.history[0].keys() == {"epoch", "side", "lr", "train_loss", "loss", "accuracy", "seconds"}


@pytest.mark.parametrize(
    "stop", [lambda: StopsAt(epochs=1), lambda: StopsAt(steps=5)], ids=["between epochs", "within an epoch"]
)
def test_a_resumed_run_equals_an_undisturbed_one_to_the_last_bit(
    stop: Callable[[], StopsAt], data: DataSet, tmp_path: Path
) -> None:
    whole = trained(SHORT, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(SHORT, data, tmp_path / "stopped", stop())
    listener = Listens()
    resumed = trained(SHORT, data, tmp_path / "stopped", listener, resume=True)
    assert listener.told[0] == pytest.approx(1 / 3), "one epoch was not done again"
    assert len(resumed.history) == len(whole.history) == 3
    expected, found = (flat(checkpoint.load(tmp_path / name / "checkpoint.pt")) for name in ("whole", "stopped"))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not same(expected[key], found[key])] == []
    for one, other in zip(whole.net.state_dict().values(), resumed.net.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_another_seed_gives_another_run(data: DataSet, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)
    losses = [trained(recipe, data, tmp_path / str(seed), seed=seed).history[0]["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_the_average_is_exponential(data: DataSet, tmp_path: Path) -> None:
    # One step an epoch at a constant rate: the first epoch of both runs is the same.
    one = replace(SHORT, epochs=1, batch_size=120, schedule="multistep", sizes=(), ema_decay=0.9)
    trained(one, data, tmp_path / "one")
    run = trained(replace(one, epochs=2), data, tmp_path / "two")
    first = checkpoint.load(tmp_path / "one" / "checkpoint.pt")["net"]
    second = checkpoint.load(tmp_path / "two" / "checkpoint.pt")["net"]
    for key in ("conv1.weight", "fc.bias", "bn1.running_mean"):
        assert not torch.equal(first[key], second[key])
        torch.testing.assert_close(run.net.state_dict()[key], 0.9 * first[key] + 0.1 * second[key])


def test_without_an_average_the_network_itself_is_kept(data: DataSet, tmp_path: Path) -> None:
    run = trained(replace(SHORT, epochs=1, ema_decay=0.0), data, tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state["ema"] is None
    assert all(torch.equal(tensor, state["net"][key]) for key, tensor in run.net.state_dict().items())
    assert not run.net.training


def test_a_state_dict_to_start_from_is_started_from(data: DataSet, tmp_path: Path) -> None:
    first = trained(replace(SHORT, epochs=1, ema_decay=0.0), data, tmp_path / "first")
    start = {key: tensor.clone() for key, tensor in first.net.state_dict().items()}
    still = replace(SHORT, epochs=1, lr=0.0, ema_decay=0.0, weight_decay=0.0)
    second = trained(still, data, tmp_path / "second", init=start)
    for name, parameter in second.net.named_parameters():
        assert torch.equal(parameter, start[name]), name


# What is refused


@pytest.mark.parametrize(
    "change",
    [{"recipe": replace(SHORT, lr=0.2)}, {"recipe": SHORT.lasting(4)}, {"seed": 4}, {"limit": 60}],
    ids=["rate", "epochs", "seed", "pictures"],
)
def test_a_run_resumes_under_its_own_choices_only(change: dict[str, Any], data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(SHORT, data, tmp_path, StopsAt(epochs=1))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    if "limit" in change:
        data = load("synthetic", Path(), holdout=20, limit=change["limit"])
    with pytest.raises(RecipeError, match=r"holds a run of recipe 'smoke' \(seed 3, 3 epochs, 120 pictures\)"):
        trained(change.get("recipe", SHORT), data, tmp_path, seed=change.get("seed", 3), resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_there_must_be_something_to_resume(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        trained(SHORT, data, tmp_path, resume=True)


def test_a_run_in_the_folder_is_never_overwritten(data: DataSet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", {"precious": 1})
    with pytest.raises(SaveError, match="holds a run already: go on with --resume, or choose another --run"):
        trained(SHORT, data, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt") == {"precious": 1}


def test_a_loss_that_is_no_longer_finite_ends_the_run(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no longer finite in epoch 1"):
        trained(replace(SHORT, lr=1e30, warmup_start=1.0), data, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists(), "a broken network is not saved"
