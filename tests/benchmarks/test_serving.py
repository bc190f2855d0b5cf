"""The comparison of servers: what it posts, what it counts, whom it refuses, and all of it against real servers."""

import contextlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.serving.__main__ import main
from benchmarks.serving.agreement import Agreement, compare, expected, reference_pictures
from benchmarks.serving.ceiling import Ceiling, measure
from benchmarks.serving.chart import draw
from benchmarks.serving.machine import versions
from benchmarks.serving.openloop import OpenLoop, open_loop
from benchmarks.serving.payloads import Encoding, Payload, body_of, large_jpeg, small_pngs
from benchmarks.serving.report import rows_of, summary, table
from benchmarks.serving.rounds import Case, Contest, Results, cases_of
from benchmarks.serving.servers import SERVERS, Running, Server, ServerError
from benchmarks.serving.wrk import Load, drive, parsed
from model.card import read_card
from tests.app.running import ROOT

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt install wrk")

NAMED = {server.name: server for server in SERVERS}
PNG, RAW, ALONE = Case("png", "multipart", 32), Case("png", "raw", 32), Case("png", "multipart", 1)

# Written by wrk 4.1.0 and post.lua: every other picture was cut off.
CAPTURED = """\
Running 3s test @ http://127.0.0.1:9304/predict?top_k=1&views=1
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   171.20ms   46.63ms 278.77ms   74.29%
    Req/Sec    11.60      4.80    20.00     72.00%
  35 requests in 3.10s, 16.59KB read
  Non-2xx or 3xx responses: 18
Requests/sec:     11.28
Transfer/sec:      5.35KB
{"requests": 35, "microseconds": 3103992, "p50": 172228, "p90": 224736, "p99": 278765, "refused": 18, "lost": 0}
"""

LIAR = Server("liar", "tests.benchmarks.liar")


def load_of(rate: float, *, p50: float = 10.0, p99: float = 20.0, refused: int = 0) -> Load:
    """A run of a second."""
    return Load(int(rate) + refused, 1.0, p50, p50, p99, refused=refused, lost=0)


@contextlib.contextmanager
def running(server: Server, weights: Path, folder: Path) -> Iterator[Running]:
    """A server, ended afterwards."""
    started = Running(server, weights, folder / "server.log")
    try:
        yield started
    finally:
        started.stop()


def driven(started: Running, content_type: str, bodies: list[Path]) -> Load:
    """A run with an answer in it: on a machine that has much else to do a second may be too short for one."""
    for seconds in (1, 4, 16, 64):
        load = drive(started.url, content_type, bodies, connections=2, seconds=seconds)
        if load.requests:
            return load
    pytest.fail("nothing was answered")


@pytest.fixture(scope="module")
def small() -> Payload:
    return small_pngs()


@pytest.fixture(scope="module")
def large() -> Payload:
    return large_jpeg()


def test_small_pictures_are_like_those_of_cifar10(small: Payload) -> None:
    assert len(set(small.files)) == 16
    assert {Image.open(io.BytesIO(file)).size for file in small.files} == {(32, 32)}
    assert 1900 < np.mean([len(file) for file in small.files]) < 2900


def test_the_large_picture_is_like_a_phones(large: Payload) -> None:
    (file,) = large.files
    assert Image.open(io.BytesIO(file)).size == (4000, 3000)
    assert 2_000_000 < len(file) < 8_000_000


def test_the_same_seed_draws_the_same(small: Payload, large: Payload) -> None:
    assert small_pngs() == small
    assert small_pngs(seed=1).files[0] != small.files[0]
    assert large_jpeg() == large


def test_a_raw_body_is_the_file_and_a_multipart_one_holds_it() -> None:
    assert body_of(b"data", "image/png", "raw").data == b"data"
    multipart = body_of(b"data", "image/png", "multipart")
    assert multipart.content_type.startswith("multipart/form-data; boundary=")
    assert multipart.data.count(b"data\r\n--") == 1


def test_the_test_set_is_asked_about_where_it_is_there(cifar10_root: Path, tmp_path: Path, small: Payload) -> None:
    pictures = reference_pictures(cifar10_root, 3)
    assert len(pictures.files) == 3
    drawn = reference_pictures(tmp_path, 3)
    assert len(drawn.files) == 3
    assert not {*pictures.files, *small.files} & {*drawn.files}


def test_wrks_output_is_read() -> None:
    load = parsed(CAPTURED)
    assert load == Load(35, 3.103992, 172.228, 224.736, 278.765, refused=18, lost=0)
    assert load.rate == pytest.approx(17 / 3.103992)
    assert load.errors == 18


def test_a_run_without_answers_has_no_latencies() -> None:
    nothing = '{"requests": 0, "microseconds": 1005544, "p50": 0, "p90": 0, "p99": 0, "refused": 0, "lost": 2}'
    load = parsed(nothing)
    assert (load.p50, load.p99, load.rate, load.errors) == (None, None, 0.0, 2)


@pytest.mark.parametrize("output", ["", "Requests/sec: 17\n"])
def test_output_without_our_line_is_an_error(output: str) -> None:
    with pytest.raises(ServerError, match="wrk says nothing of use"):
        parsed(output)


def test_ratios_are_to_the_best_peer_and_to_what_is_possible() -> None:
    results = Results(
        loads={
            PNG: {
                "naive": [load_of(50), load_of(40), load_of(90)],
                "tuned": [load_of(100)],
                "mosec": [load_of(200)],
                "tenfold": [load_of(300, refused=7), load_of(100), load_of(400)],
                "front": [load_of(900)],
            },
            RAW: {"tenfold": [load_of(10)]},
            ALONE: {"tenfold": [load_of(50)], "front": [load_of(100)]},
        },
        ceilings=[Ceiling(450.0, 10.0, "torch"), Ceiling(400.0, 9.0, "torch"), Ceiling(500.0, 11.0, "torch")],
    )
    rows = {(row.case, row.server): row for row in rows_of(results)}
    in_order = [(PNG, name) for name in ("naive", "tuned", "mosec", "tenfold", "front")]
    assert list(rows) == [*in_order, (RAW, "tenfold"), (ALONE, "tenfold"), (ALONE, "front")]
    ours = rows[PNG, "tenfold"]
    assert (ours.rate, ours.errors) == (300, 7)
    assert ours.to_best_peer == pytest.approx(1.5)
    assert ours.to_naive == pytest.approx(6.0)
    assert ours.share == pytest.approx(1.0)  # 450 and 900 in turns are 300
    assert rows[PNG, "mosec"].share is None
    assert (rows[PNG, "front"].to_best_peer, rows[PNG, "front"].to_naive) == (None, None)
    assert rows[PNG, "tuned"].to_best_peer == pytest.approx(0.5)
    raw = rows[RAW, "tenfold"]
    assert (raw.to_best_peer, raw.to_naive, raw.share) == (None, None, None)
    assert rows[ALONE, "tenfold"].share == pytest.approx(1.0)  # 100 single pictures and 100 in turns are 50


def test_results_are_told_in_a_table_in_json_and_in_a_chart(tmp_path: Path) -> None:
    results = Results(
        loads={PNG: {"naive": [load_of(50)], "tenfold": [load_of(300)]}},
        open_loop=[OpenLoop(30.0, 2.0, 1.0, {200: 2, 503: 1}, latencies=[0.5, 1.5])],
        missing={"mosec": "not installed"},
    )
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(results))
    text = console.export_text()
    assert "6.00 x" in text
    assert "mosec" in text
    assert "not installed" in text
    told = json.loads(json.dumps(summary(results, weights=Path("w"), rounds=1, seconds=1, failures=[])))
    assert told["rows"][1]["to_naive"] == pytest.approx(6.0)
    assert told["open_loop"][0]["goodput"] == pytest.approx(0.5)  # one of the two was too late
    assert told["hardware"]["cores"] == os.cpu_count()
    draw(results, tmp_path / "deep" / "chart.png")
    with Image.open(tmp_path / "deep" / "chart.png") as image:
        assert image.width > 500


def test_versions_are_those_installed() -> None:
    assert versions()["numpy"] == np.__version__


def test_large_pictures_are_not_posted_by_more_than_can_be_answered(small: Payload, large: Payload) -> None:
    cases = cases_of([small, large], [1, 128])
    assert Case("png", "raw", 128) in cases
    assert Case("jpeg", "multipart", 1) in cases
    assert not [case for case in cases if case.payload == "jpeg" and case.connections > 32]


@pytest.mark.parametrize(("other", "large", "holds"), [(2, {}, True), (3, {}, False), (0, {"raw": "cat"}, False)])
def test_two_of_a_hundred_may_differ_and_the_large_picture_may_not(
    other: int, large: dict[Encoding, str], holds: bool
) -> None:
    assert Agreement(100, other, large).holds is holds


def test_the_reference_is_what_the_service_says(tiny_bundle: Path, small: Payload, large: Payload) -> None:
    right = expected(tiny_bundle, small, large)
    labels = read_card(tiny_bundle / "card.json").labels
    assert len(right.labels) == len(small.files)
    assert {*right.labels, right.label} <= set(labels)


@needs_wrk
def test_who_lies_dies_or_is_missing_drops_out_and_the_others_go_on(
    tiny_bundle: Path, small: Payload, large: Payload, tmp_path: Path
) -> None:
    right = expected(tiny_bundle, small, large)
    missing = Server("missing", "tests.benchmarks.liar", package="no_such_package")
    dying = Server("dying", "tests.benchmarks.no_such_module")
    said: list[str] = []
    with Contest(tiny_bundle, right, [small, large], bodies=tmp_path, logs=tmp_path, say=said.append) as contest:
        for server in (missing, dying, LIAR, NAMED["front"]):
            contest.enter(server)
        contest.run([PNG, RAW], rounds=2, seconds=1, ceiling=False)
    assert contest.results.missing == {"missing": "not installed", "dying": "failed", "liar": "failed"}
    assert "no_such_package is not installed: run make bench" in said
    died, lied = contest.failures
    assert "dying ends with code 1 before it answers" in died
    assert "No module named tests.benchmarks.no_such_module" in died
    assert "liar disagrees with float32 on 16 of 16 small pictures, and of the large picture (multipart)" in lied
    for case in (PNG, RAW):
        assert list(contest.results.loads[case]) == ["front"]
        assert [load.errors for load in contest.results.loads[case]["front"]] == [0, 0]
    assert sum(load.requests for by_name in contest.results.loads.values() for load in by_name["front"]) > 0


@needs_wrk
def test_the_naive_server_agrees_and_is_driven(
    tiny_bundle: Path, small: Payload, large: Payload, tmp_path: Path
) -> None:
    right = expected(tiny_bundle, small, large)
    (first, *_) = bodies = small.bodies("multipart")
    paths = [tmp_path / str(number) for number in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(body.data)
    with running(NAMED["naive"], tiny_bundle, tmp_path) as naive:
        naive.wait_ready(first)
        assert compare(naive, right) == Agreement(16, 0, {})
        assert 0.1 < naive.ask(first).probability <= 1.0
        load = driven(naive, first.content_type, paths)
        refused = driven(naive, "text/plain", paths[:1])
    assert load.errors == 0
    assert load.p50 is not None
    assert load.p99 is not None
    assert 0 < load.p50 <= load.p99
    assert refused.refused == refused.requests
    assert refused.rate == 0


def test_a_paused_server_says_nothing_and_an_open_loop_counts_what_comes_in_time(
    tiny_bundle: Path, small: Payload, tmp_path: Path
) -> None:
    body = small.bodies("raw")[0]
    with running(NAMED["front"], tiny_bundle, tmp_path) as front:
        front.wait_ready(body)
        front.pause()
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=1)
        connection.request("GET", "/livez")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        front.resume()
        front.settle(body)
        assert front.ask(body).label in read_card(tiny_bundle / "card.json").labels
        outcomes = open_loop(front, [body], capacity=10, seconds=1, deadline=20)
        late = open_loop(front, [body], capacity=10, seconds=1, deadline=1e-4)
    assert [outcome.offered for outcome in outcomes] == [5, 10, 15, 20]
    for outcome in outcomes:
        assert set(outcome.statuses) == {200}
        assert outcome.goodput == outcome.statuses[200] > 0
        assert outcome.lost == 0
    for outcome in late:
        assert outcome.goodput == 0
        assert 200 not in outcome.statuses


def test_the_network_alone_is_timed(tiny_bundle: Path) -> None:
    ceiling = measure(tiny_bundle, 0.2)
    assert ceiling.rate > 0
    assert ceiling.latency > 0
    assert ceiling.engine.startswith("torch, ")


@pytest.mark.slow
@needs_wrk
def test_the_command_measures_tells_and_draws(tiny_bundle: Path, tmp_path: Path) -> None:
    ran = command(
        *("--weights", str(tiny_bundle), "--only", "front", "--rounds", "1", "--seconds", "1", "--connections", "1"),
        *("--pictures", "2", "--json", str(tmp_path / "all.json"), "--chart", str(tmp_path / "all.png")),
        *("--logs", str(tmp_path / "logs")),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [(row["case"]["payload"], row["case"]["encoding"]) for row in told["rows"]] == [
        ("png", "multipart"),
        ("png", "raw"),
        ("jpeg", "multipart"),
        ("jpeg", "raw"),
    ]
    assert all(row["server"] == "front" and row["errors"] == 0 for row in told["rows"])
    assert (tmp_path / "all.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "nosuch"), "there is no nosuch"),
        (("--connections", "many"), "is no list of numbers"),
        (("--connections", "0"), "there must be a connection"),
        (("--rounds", "0"), "--rounds"),
    ],
)
def test_wrong_options_are_told(arguments: tuple[str, ...], says: str) -> None:
    app = typer.Typer()
    app.command()(main)
    ran = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert ran.exit_code == 2
    assert says in ran.output


def test_without_wrk_the_command_says_what_to_install(tmp_path: Path) -> None:
    ran = command("--logs", str(tmp_path), path="")
    assert (ran.returncode, ran.stderr) == (1, "error: wrk is not installed: apt install wrk\n")


def command(*arguments: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    """python -m benchmarks.serving; `path` is where it looks for wrk, if not in PATH."""
    environment = {**os.environ, "COLUMNS": "200", **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
