"""benchmarks.scale: the simulation behaves like a queue, and its commands run with real services."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.scale.__main__ import command
from benchmarks.scale.simulation import Bursts, Cost, simulate

COST = Cost.of(latency=0.006, rate=200.0, images=32)
FOREVER = 1e6


def test_the_cost_fits_both_measurements() -> None:
    assert COST.seconds(1) == pytest.approx(0.006)
    assert COST.seconds(32) == pytest.approx(32 / 200)


def test_a_rate_above_that_of_single_requests_costs_nothing_per_image() -> None:
    assert Cost.of(latency=0.01, rate=10_000.0, images=32) == Cost(0.01, 0.0)


def test_arrivals_have_the_rates_of_the_bursts() -> None:
    bursts = Bursts(100.0, factor=3.0, length=2.0, period=10.0)
    times = bursts.arrivals(200.0, seed=0)
    inside = [time for time in times if time % 10 >= 8]
    assert times == sorted(times)
    assert len(inside) / 40 == pytest.approx(300, rel=0.05)
    assert (len(times) - len(inside)) / 160 == pytest.approx(100, rel=0.05)


def test_requests_that_are_alone_take_the_time_of_one_image() -> None:
    outcome = simulate([0.0, 1.0, 2.0], replicas=1, cost=COST, limit=1.0)
    assert outcome.latencies == pytest.approx([0.006] * 3)
    assert outcome.refused == outcome.late == 0


def test_what_arrives_during_a_batch_is_the_next_batch() -> None:
    outcome = simulate([0.0, 0.001, 0.002, 0.003], replicas=1, cost=COST, limit=1.0)
    assert outcome.latencies[1:] == pytest.approx([0.006 + COST.seconds(3) - at for at in (0.001, 0.002, 0.003)])


def test_an_overloaded_replica_runs_at_its_capacity_and_refuses_the_rest() -> None:
    arrivals = Bursts(400.0, factor=1.0).arrivals(20.0, seed=0)
    outcome = simulate(arrivals, replicas=1, cost=COST, limit=1.0)
    assert outcome.requests == len(arrivals)
    assert len(outcome.latencies) / 20 == pytest.approx(200, rel=0.1)
    assert outcome.late < 0.01 * len(arrivals), "admission control refuses in time"
    assert max(outcome.latencies) <= 1.0


def test_refused_requests_cost_time() -> None:
    arrivals = Bursts(400.0, factor=1.0).arrivals(20.0, seed=0)
    cost = Cost(COST.fixed, COST.per_image, refusal=0.002)
    with_cost, without = (simulate(arrivals, replicas=1, cost=each, limit=1.0) for each in (cost, COST))
    assert with_cost.refused > 1.1 * without.refused


def test_without_a_deadline_the_queue_is_the_limit() -> None:
    outcome = simulate([0.0] * 100, replicas=1, cost=COST, limit=FOREVER, queue_size=40)
    assert (len(outcome.latencies), outcome.refused) == (40, 60)


def test_more_replicas_lose_less() -> None:
    arrivals = Bursts(400.0).arrivals(20.0, seed=0)
    outcomes = [simulate(arrivals, replicas=count, cost=COST, limit=1.0) for count in (1, 3, 8)]
    shares = [outcome.lost_share for outcome in outcomes]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0.0
    assert outcomes[-1].p99 < outcomes[1].p99


def run(*arguments: str) -> str:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_simulation_prints_a_row_for_each_number_and_draws_a_chart(tmp_path: Path) -> None:
    chart = tmp_path / "charts" / "scale.png"
    output = run("simulate", "--rate", "100", "--seconds", "10", "--replicas", "3", "--chart", str(chart))
    assert re.findall(r"^(\d+) replicas", output, re.MULTILINE) == ["1", "2", "3"]
    with Image.open(chart) as image:
        assert image.width > 500


def test_a_missing_bundle_is_reported_in_one_sentence(tmp_path: Path) -> None:
    ended = CliRunner().invoke(command, ["core", "--weights", str(tmp_path / "none"), "--logs", str(tmp_path)])
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("error: ")


@pytest.mark.slow
def test_the_speed_of_a_core_is_measured(int8_bundle: Path, tmp_path: Path) -> None:
    output = run("core", "--weights", str(int8_bundle), "--seconds", "0.2", "--logs", str(tmp_path))
    assert re.findall(r"^(\w+) +[\d,]+ +[\d.]+/s +\d+/s +\d+/s +[\d.]+$", output, re.MULTILINE) == ["png", "jpeg"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("haproxy"), reason="needs haproxy, from Debian's package haproxy")
def test_the_simulation_is_compared_with_a_real_replica(int8_bundle: Path, tmp_path: Path) -> None:
    options = ("--replicas", "1", "--seconds", "2", "--calibration", "0.5", "--logs", str(tmp_path))
    output = run("check", "--weights", str(int8_bundle), *options)
    rows = re.findall(r"^1 replicas, (\w+) +(\d+)", output, re.MULTILINE)
    assert [name for name, _ in rows] == ["measured", "simulated"]
    assert rows[0][1] == rows[1][1]
