"""Training in two processes, compared with training in one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import RecipeError
from model.training.ranks import Ranks
from tests.app.running import default_sigint
from tests.model.training import follower

ONE = Ranks()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes of torchrun."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The parts of a batch


@pytest.mark.parametrize(("count", "size"), [(12, 1), (12, 2), (13, 2), (13, 4), (4, 4)])
def test_the_parts_of_the_ranks_are_the_batch_in_its_order(count: int, size: int) -> None:
    values = torch.arange(count)
    parts = [values[Ranks(rank, size).part(count)] for rank in range(size)]
    assert torch.cat(parts).tolist() == values.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_mean_of_the_terms_is_that_of_the_batch() -> None:
    values = torch.rand(13, dtype=torch.float64)
    terms = [ranks.mean(values[ranks.part(13)], 13) for ranks in (Ranks(rank, 4) for rank in range(4))]
    assert torch.stack(terms).mean().item() == pytest.approx(values.mean().item())


def test_every_rank_takes_the_whole_of_a_batch_with_fewer_images_than_ranks() -> None:
    assert Ranks(2, 4).splitting(4) == Ranks(2, 4)
    assert Ranks(2, 4).splitting(3) == ONE
    assert ONE.part(3) == slice(0, 3)


def test_a_batch_that_is_smaller_than_the_ranks_is_an_error(tmp_path: Path) -> None:
    recipe = replace(follower.SHORT, batch_size=3)
    with pytest.raises(RecipeError, match="a batch of 3 cannot be split between 4 ranks: lower --nproc-per-node"):
        follower.run(recipe, tmp_path, follower.Trace(), Ranks(0, 4))


# Two processes


@dataclass
class Results:
    """Of two ranks, and the folder of their runs."""

    ranks: list[dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def two(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    follower.stopped(follower.STOPPED, folder / "stopped by one", ONE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.model.training.follower", str(tiny_bundle), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    return Results([torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], folder)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("case", follower.RECIPES)
def test_two_ranks_follow_the_loss_of_one_process(case: str, two: Results, tiny_bundle: Path, tmp_path: Path) -> None:
    alone = follower.trained(case, tiny_bundle, tmp_path, ONE)
    assert len(alone["losses"]) >= (20 if case == "SGD with a teacher" else 7)
    for rank in two.ranks:
        assert rank[case]["losses"] == pytest.approx(alone["losses"], abs=1e-3)
        assert [record["loss"] for record in rank[case]["history"]] == pytest.approx(
            [record["loss"] for record in alone["history"]], rel=0.02
        )


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("case", follower.RECIPES)
def test_the_ranks_have_equal_weights_and_statistics(case: str, two: Results) -> None:
    first, second = (rank[case]["weights"] for rank in two.ranks)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("layer", follower.LAYERS)
def test_a_layer_normalises_by_the_statistics_of_all_ranks(layer: str, two: Results) -> None:
    alone = follower.normalised(layer, ONE)
    for rank in two.ranks:
        torch.testing.assert_close(rank[layer], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.ddp
@pytest.mark.slow
def test_a_run_is_resumed_by_another_number_of_ranks(two: Results, tmp_path: Path) -> None:
    trace = follower.Trace()
    follower.run(follower.STOPPED, tmp_path, trace, ONE)
    by_one = follower.resumed(follower.STOPPED, two.folder / "stopped by two", ONE)
    by_two = two.ranks[0]["resumed"]
    assert len(by_one) >= 2
    assert by_one == pytest.approx(trace.losses[-len(by_one) :], abs=1e-3)
    assert by_two == pytest.approx(trace.losses[-len(by_one) :], abs=1e-3)


@pytest.mark.ddp
@pytest.mark.slow
def test_the_random_numbers_of_the_network_are_resumed_in_every_rank(two: Results) -> None:
    for rank in two.ranks:
        whole, resumed = rank["dropout"]
        assert len(resumed) >= 2
        assert resumed == pytest.approx(whole[-len(resumed) :], abs=1e-6)


# The command


def torchrun(*arguments: str | Path) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ("--recipe", "smoke", "--epochs", "4", "--limit", "100", *arguments)
    command = [*launch, "-m", "--", "model.train", "--device", "cpu", *map(str, arguments)]
    with default_sigint():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def after_an_epoch(process: subprocess.Popen[str], action: Callable[[], None]) -> tuple[int, str, str]:
    """Act when the run has reported its first epoch, and wait for its end. Returns the exit code and the output."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 1/"):
            action()
    _, errors = process.communicate(timeout=120)
    return process.returncode, "".join(lines), errors


def rank_processes(torchrun: int) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    ranks = {}
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks.update({int(each.split(b"=")[1]): int(child) for each in variables if each.startswith(b"RANK=")})
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.ddp
@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_which_is_then_resumed(tmp_path: Path) -> None:
    process = torchrun("--run", tmp_path / "run")
    code, out, errors = after_an_epoch(process, lambda: os.kill(rank_processes(process.pid)[1], signal.SIGKILL))
    assert code == 1
    assert out.count("epoch 1/4") == 1
    assert "Signal 9 (SIGKILL)" in errors
    assert 'Traceback (most recent call last):\n  File "<frozen runpy>"' in errors, "of torchrun alone"
    assert errors.count("rank 0 has lost the connection") + errors.count("stopped; the progress is saved in ") == 1
    resumed = torchrun("--run", tmp_path / "run", "--resume")
    code, out, errors = after_an_epoch(resumed, lambda: None)
    assert code == 0, errors
    assert "epoch 1/4" not in out
    assert out.count("\nepoch 4/4") == out.count("\nwrote ") == 1
    assert (tmp_path / "run" / "resnet18-synthetic" / "card.json").exists()


@pytest.mark.ddp
@pytest.mark.slow
def test_a_signal_stops_all_ranks_and_the_main_one_reports_it(tmp_path: Path) -> None:
    process = torchrun("--run", tmp_path / "run")
    code, _, errors = after_an_epoch(process, lambda: process.send_signal(signal.SIGTERM))
    assert code != 0
    assert errors.count(f"stopped; the progress is saved in {tmp_path / 'run'}: continue with the same command") == 1
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert not (tmp_path / "run" / "checkpoint.partial").exists()


@pytest.mark.ddp
@pytest.mark.slow
def test_an_error_ends_all_ranks(tmp_path: Path) -> None:
    process = torchrun("--resume", "--run", tmp_path / "run")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert "error: there is nothing to resume in" in errors or "error: in rank 1: there is nothing to resume" in errors
    assert list(tmp_path.iterdir()) == []
