"""The comparison of servers: requests, metrics, the check of predictions, and measurements of real servers."""

import contextlib
import http.client
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from benchmarks.serving.__main__ import main
from benchmarks.serving.agreement import Agreement, compare, compute_reference, reference_images
from benchmarks.serving.ceiling import Ceiling, measure
from benchmarks.serving.chart import draw
from benchmarks.serving.machine import versions
from benchmarks.serving.mixed import MixedResults, measure_mixed
from benchmarks.serving.openloop import OpenLoop, open_loop
from benchmarks.serving.payloads import Encoding, Payload, body_of, large_jpeg, small_pngs
from benchmarks.serving.peers.network import top1
from benchmarks.serving.report import mixed_rows, rows_of, summary, table, tensor_rows
from benchmarks.serving.rounds import Case, Comparison, Results, cases_of
from benchmarks.serving.servers import SERVERS, RunningServer, Server, ServerError
from benchmarks.serving.tensors import CASES as TENSOR_CASES
from benchmarks.serving.tensors import PNG as TENSOR_PNG
from benchmarks.serving.tensors import TensorResults, measure_tensors
from benchmarks.serving.wrk import Load, drive, parse_output
from model.calibration import softmax
from model.card import Calibration, read_card

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt install wrk")

BY_NAME = {server.name: server for server in SERVERS}
PNG, RAW, SINGLE = Case("png", "multipart", 32), Case("png", "raw", 32), Case("png", "multipart", 1)

# Output of wrk 4.1.0 and post.lua. Every other image was truncated.
OUTPUT = """\
Running 3s test @ http://127.0.0.1:9304/predict?top_k=1&views=1
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   171.20ms   46.63ms 278.77ms   74.29%
    Req/Sec    11.60      4.80    20.00     72.00%
  35 requests in 3.10s, 16.59KB read
  Non-2xx or 3xx responses: 18
Requests/sec:     11.28
Transfer/sec:      5.35KB
{"requests": 35, "microseconds": 3103992, "p50": 172228, "p90": 224736, "p99": 278765, "rejected": 18, "lost": 0}
"""

CONSTANT = Server("constant", "tests.benchmarks.constant")


def test_the_peers_return_calibrated_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (20, 10)).astype(np.float32)
    calibration = Calibration(temperature=0.4, exponent=0.6, views=1, pictures=9)
    expected = softmax(logits, 0.4, 0.6)
    found = top1(torch.from_numpy(logits), calibration)
    assert [index for index, _ in found] == expected.argmax(axis=1).tolist()
    assert [probability for _, probability in found] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)


def load_of(rate: float, *, p50: float = 10.0, p99: float = 20.0, rejected: int = 0) -> Load:
    """Results of a run of one second."""
    return Load(int(rate) + rejected, 1.0, p50, p50, p99, rejected=rejected, lost=0)


def run(*arguments: str, **environment: str) -> Result:
    """Run python -m benchmarks.serving in this process."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", **environment})


@contextlib.contextmanager
def running(server: Server, weights: Path, folder: Path) -> Iterator[RunningServer]:
    """Start a server, and stop it afterwards."""
    started = RunningServer(server, weights, folder / "server.log")
    try:
        yield started
    finally:
        started.stop()


def drive_until_response(started: RunningServer, content_type: str, bodies: list[Path]) -> Load:
    """A run with at least one response. On a busy machine a second may be too short."""
    for seconds in (1, 4, 16, 64):
        load = drive(started.url, content_type, bodies, connections=2, seconds=seconds)
        if load.requests:
            return load
    pytest.fail("there was no response")


@pytest.fixture(scope="module")
def small() -> Payload:
    return small_pngs()


@pytest.fixture(scope="module")
def large() -> Payload:
    return large_jpeg()


def test_small_images_have_the_size_of_cifar10_images(small: Payload) -> None:
    assert len(set(small.files)) == 16
    assert {Image.open(io.BytesIO(file)).size for file in small.files} == {(32, 32)}
    assert 1900 < np.mean([len(file) for file in small.files]) < 2900


def test_the_large_image_has_the_size_of_a_photo(large: Payload) -> None:
    (file,) = large.files
    assert Image.open(io.BytesIO(file)).size == (4000, 3000)
    assert 2_000_000 < len(file) < 8_000_000


def test_the_same_seed_generates_the_same_images(small: Payload, large: Payload) -> None:
    assert small_pngs() == small
    assert small_pngs(seed=1).files[0] != small.files[0]
    assert large_jpeg() == large


def test_raw_and_multipart_bodies_contain_the_file() -> None:
    assert body_of(b"data", "image/png", "raw").data == b"data"
    multipart = body_of(b"data", "image/png", "multipart")
    assert multipart.content_type.startswith("multipart/form-data; boundary=")
    assert multipart.data.count(b"data\r\n--") == 1


def test_reference_images_are_from_the_test_set_if_available(
    cifar10_root: Path, tmp_path: Path, small: Payload
) -> None:
    images = reference_images(cifar10_root, 3)
    assert len(images.files) == 3
    generated = reference_images(tmp_path, 3)
    assert len(generated.files) == 3
    assert not {*images.files, *small.files} & {*generated.files}


def test_the_output_of_wrk_is_parse_output() -> None:
    load = parse_output(OUTPUT)
    assert load == Load(35, 3.103992, 172.228, 224.736, 278.765, rejected=18, lost=0)
    assert load.rate == pytest.approx(17 / 3.103992)
    assert load.errors == 18


def test_a_run_without_responses_has_no_latencies() -> None:
    output = '{"requests": 0, "microseconds": 1005544, "p50": 0, "p90": 0, "p99": 0, "rejected": 0, "lost": 2}'
    load = parse_output(output)
    assert (load.p50, load.p99, load.rate, load.errors) == (None, None, 0.0, 2)


@pytest.mark.parametrize("output", ["", "Requests/sec: 17\n"])
def test_output_without_the_json_line_is_an_error(output: str) -> None:
    with pytest.raises(ServerError, match="wrk prints no result"):
        parse_output(output)


def test_ratios_to_the_best_peer_the_naive_server_and_the_possible_rate() -> None:
    results = Results(
        loads={
            PNG: {
                "naive": [load_of(50), load_of(40), load_of(90)],
                "tuned": [load_of(100)],
                "mosec": [load_of(200)],
                "tenfold": [load_of(300, rejected=7), load_of(100), load_of(400)],
                "front": [load_of(900)],
            },
            RAW: {"tenfold": [load_of(10)]},
            SINGLE: {"tenfold": [load_of(50)], "front": [load_of(100)]},
        },
        ceilings=[Ceiling(450.0, 10.0, "torch"), Ceiling(400.0, 9.0, "torch"), Ceiling(500.0, 11.0, "torch")],
    )
    rows = {(row.case, row.server): row for row in rows_of(results)}
    expected = [(PNG, name) for name in ("naive", "tuned", "mosec", "tenfold", "front")]
    assert list(rows) == [*expected, (RAW, "tenfold"), (SINGLE, "tenfold"), (SINGLE, "front")]
    ours = rows[PNG, "tenfold"]
    assert (ours.rate, ours.errors) == (300, 7)
    assert ours.to_best_peer == pytest.approx(1.5)
    assert ours.to_naive == pytest.approx(6.0)
    assert ours.share == pytest.approx(1.0)  # 1 / (1 / 450 + 1 / 900)
    assert rows[PNG, "mosec"].share is None
    assert (rows[PNG, "front"].to_best_peer, rows[PNG, "front"].to_naive) == (None, None)
    assert rows[PNG, "tuned"].to_best_peer == pytest.approx(0.5)
    raw = rows[RAW, "tenfold"]
    assert (raw.to_best_peer, raw.to_naive, raw.share) == (None, None, None)
    assert rows[SINGLE, "tenfold"].share == pytest.approx(1.0)  # 1 / (1 / 100 + 1 / 100)


def test_results_as_a_table_as_json_and_as_a_chart(tmp_path: Path) -> None:
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
    content = json.loads(json.dumps(summary(results, weights=Path("w"), rounds=1, seconds=1, failures=[])))
    assert content["rows"][1]["to_naive"] == pytest.approx(6.0)
    assert content["open_loop"][0]["goodput"] == pytest.approx(0.5)  # one of two was too late
    assert content["hardware"]["cores"] == os.cpu_count()
    draw(results, tmp_path / "deep" / "chart.png")
    with Image.open(tmp_path / "deep" / "chart.png") as image:
        assert image.width > 500


def test_versions_are_those_installed() -> None:
    assert versions()["numpy"] == np.__version__


def test_the_large_image_is_not_sent_by_too_many_connections(small: Payload, large: Payload) -> None:
    cases = cases_of([small, large], [1, 128])
    assert Case("png", "raw", 128) in cases
    assert Case("jpeg", "multipart", 1) in cases
    assert not [case for case in cases if case.payload == "jpeg" and case.connections > 32]


@pytest.mark.parametrize(("different", "large", "holds"), [(2, {}, True), (3, {}, False), (0, {"raw": "cat"}, False)])
def test_two_of_a_hundred_predictions_may_differ_but_not_that_of_the_large_image(
    different: int, large: dict[Encoding, str], holds: bool
) -> None:
    assert Agreement(100, different, large).holds is holds


def test_reference_labels_are_classes_of_the_card(tiny_bundle: Path, small: Payload, large: Payload) -> None:
    reference = compute_reference(tiny_bundle, small, large)
    labels = read_card(tiny_bundle / "card.json").labels
    assert len(reference.labels) == len(small.files)
    assert {*reference.labels, reference.label} <= set(labels)


@needs_wrk
def test_a_wrong_failed_or_missing_server_is_excluded(
    tiny_bundle: Path, small: Payload, large: Payload, tmp_path: Path
) -> None:
    reference = compute_reference(tiny_bundle, small, large)
    missing = Server("missing", "tests.benchmarks.constant", package="no_such_package")
    failing = Server("failing", "tests.benchmarks.no_such_module")
    messages: list[str] = []
    with Comparison(
        tiny_bundle, reference, [small, large], bodies=tmp_path, logs=tmp_path, notify=messages.append
    ) as comparison:
        for server in (missing, failing, CONSTANT, BY_NAME["front"]):
            comparison.add(server)
        comparison.run([PNG, RAW], rounds=2, seconds=1, ceiling=False)
    assert comparison.results.missing == {"missing": "not installed", "failing": "failed", "constant": "failed"}
    assert "no_such_package is not installed: run make bench" in messages
    failed, wrong = comparison.failures
    assert "failing exits with code 1 before it responds" in failed
    assert "No module named tests.benchmarks.no_such_module" in failed
    assert "constant disagrees with float32 on 16 of 16 small images, and on the large image (multipart)" in wrong
    for case in (PNG, RAW):
        assert list(comparison.results.loads[case]) == ["front"]
        assert [load.errors for load in comparison.results.loads[case]["front"]] == [0, 0]
    assert sum(load.requests for by_name in comparison.results.loads.values() for load in by_name["front"]) > 0


@pytest.mark.slow
@needs_wrk
def test_the_naive_server_agrees_and_is_measured(
    tiny_bundle: Path, small: Payload, large: Payload, tmp_path: Path
) -> None:
    reference = compute_reference(tiny_bundle, small, large)
    (first, *_) = bodies = small.bodies("multipart")
    paths = [tmp_path / str(number) for number in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(body.data)
    with running(BY_NAME["naive"], tiny_bundle, tmp_path) as naive:
        naive.wait_ready(first)
        assert compare(naive, reference) == Agreement(16, 0, {})
        assert 0.1 < naive.predict(first).probability <= 1.0
        load = drive_until_response(naive, first.content_type, paths)
        rejected = drive_until_response(naive, "text/plain", paths[:1])
    assert load.errors == 0
    assert load.p50 is not None
    assert load.p99 is not None
    assert 0 < load.p50 <= load.p99
    assert rejected.rejected == rejected.requests
    assert rejected.rate == 0


def test_a_paused_server_does_not_respond_and_an_open_loop_counts_timely_responses(
    tiny_bundle: Path, small: Payload, tmp_path: Path
) -> None:
    body = small.bodies("raw")[0]
    with running(BY_NAME["front"], tiny_bundle, tmp_path) as front:
        front.wait_ready(body)
        front.pause()
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=1)
        connection.request("GET", "/livez")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        front.resume()
        front.wait_idle(body)
        assert front.predict(body).label in read_card(tiny_bundle / "card.json").labels
        outcomes = open_loop(front, [body], capacity=10, seconds=1, deadline=20)
        late = open_loop(front, [body], capacity=10, seconds=1, deadline=1e-4)
    assert [outcome.offered for outcome in outcomes] == [5, 10, 15, 20, 30]
    for outcome in outcomes:
        assert set(outcome.statuses) == {200}
        assert outcome.goodput == outcome.statuses[200] > 0
        assert outcome.lost == 0
    for outcome in late:
        assert outcome.goodput == 0
        assert 200 not in outcome.statuses


def test_ratios_of_tensors_to_pngs_and_to_the_engine_alone() -> None:
    single, batch = TENSOR_CASES
    results = TensorResults(
        loads={TENSOR_PNG: [load_of(100), load_of(300)], single: [load_of(220)], batch: [load_of(9, rejected=1)]},
        ceilings=[Ceiling(300.0, 10.0, "torch"), Ceiling(500.0, 10.0, "torch")],
    )
    rows = tensor_rows(results)
    assert [(row.rate, row.images, row.errors) for row in rows] == [(200, 200, 0), (220, 220, 0), (9, 288, 1)]
    assert [row.to_png for row in rows] == pytest.approx([1.0, 1.1, 1.44])
    assert [row.to_ceiling for row in rows] == pytest.approx([0.5, 0.55, 0.72])
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(Results(tensors=results)))
    assert "32 tensors" in console.export_text()
    content = summary(Results(tensors=results), weights=Path("w"), rounds=1, seconds=1, failures=[])
    assert json.loads(json.dumps(content))["tensors"][1]["to_png"] == pytest.approx(1.1)


@pytest.mark.slow
@needs_wrk
def test_tensors_are_measured(tiny_bundle: Path, small: Payload, tmp_path: Path) -> None:
    with running(BY_NAME["front"], tiny_bundle, tmp_path) as front:
        front.wait_ready(small.bodies("raw")[0])
        card = read_card(tiny_bundle / "card.json")
        results = measure_tensors(front, tiny_bundle, card, small, tmp_path, rounds=1, seconds=2)
    assert list(results.loads) == [TENSOR_PNG, *TENSOR_CASES]
    for (load,) in results.loads.values():
        assert load.requests > 0
        assert load.errors == 0
    assert len(results.ceilings) == 1


def test_ratios_of_small_and_large_images_at_the_same_time_to_each_alone() -> None:
    mixed = {
        "tenfold": MixedResults(
            small_alone=[load_of(100, p99=10), load_of(100, p99=30)],
            large_alone=[load_of(10)],
            small=[load_of(50, p99=60, rejected=2)],
            large=[load_of(9)],
        )
    }
    (row,) = mixed_rows(mixed)
    assert (row.p99_alone, row.p99, row.small, row.large, row.errors) == (20, 60, 50, 9, 2)
    assert row.p99_ratio == pytest.approx(3.0)
    assert row.large_ratio == pytest.approx(0.9)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(Results(mixed=mixed)))
    assert "3.00 x" in console.export_text()
    content = summary(Results(mixed=mixed), weights=Path("w"), rounds=1, seconds=1, failures=[])
    assert json.loads(json.dumps(content))["mixed"][0]["large_ratio"] == pytest.approx(0.9)


@pytest.mark.slow
@needs_wrk
def test_small_and_large_images_are_measured(tiny_bundle: Path, small: Payload, large: Payload, tmp_path: Path) -> None:
    with running(BY_NAME["front"], tiny_bundle, tmp_path) as front:
        front.wait_ready(small.bodies("multipart")[0])
        results = measure_mixed(front, small, [large], tmp_path, rounds=1, seconds=2)
    for loads in (results.small_alone, results.large_alone, results.small, results.large):
        (load,) = loads
        assert load.requests > 0
        assert load.errors == 0


def test_the_engine_alone_is_measured(tiny_bundle: Path) -> None:
    ceiling = measure(tiny_bundle, 0.2)
    assert ceiling.rate > 0
    assert ceiling.latency > 0
    assert ceiling.engine.startswith("torch, ")


@pytest.mark.slow
@needs_wrk
def test_the_command_writes_results_and_a_chart(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(
        *("--weights", str(tiny_bundle), "--only", "front", "--rounds", "1", "--seconds", "1", "--connections", "1"),
        *("--images", "2", "--json", str(tmp_path / "all.json"), "--chart", str(tmp_path / "all.png")),
        *("--logs", str(tmp_path / "logs")),
    )
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [(row["case"]["payload"], row["case"]["encoding"]) for row in content["rows"]] == [
        ("png", "multipart"),
        ("png", "raw"),
        ("jpeg", "multipart"),
        ("jpeg", "raw"),
    ]
    assert all(row["server"] == "front" and row["errors"] == 0 for row in content["rows"])
    assert (tmp_path / "all.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "nosuch"), "unknown: nosuch"),
        (("--connections", "many"), "is not a list of numbers"),
        (("--connections", "0"), "at least one connection"),
        (("--rounds", "0"), "--rounds"),
    ],
)
def test_invalid_options_are_reported(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_missing_wrk_is_reported(tmp_path: Path) -> None:
    done = run("--logs", str(tmp_path), PATH="")
    assert (done.exit_code, done.stderr) == (1, "error: wrk is not installed: apt install wrk\n")
