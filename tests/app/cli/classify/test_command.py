"""The command: its streams, exit codes and messages."""

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import model
from app.cli.classify.command import classify
from tests.app.fakes import FakeEngine, fake_classifier, image_file, photo
from tests.app.running import ROOT, Running, default_sigint, eventually, serving

COMMAND = typer.Typer()
COMMAND.command()(classify)


def run(
    *arguments: str | Path, cwd: Path, environment: dict[str, str] | None = None, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run the command in this process.

    Returns:
        Exit code, standard output and standard error.
    """
    cleared = {name: None for name in os.environ if name.startswith("TENFOLD_")}
    with chdir(cwd):
        done = CliRunner().invoke(
            COMMAND,
            list(map(str, arguments)),
            input=stdin,
            env={**cleared, **(environment or {})},
            catch_exceptions=False,
            standalone_mode=False,
        )
    return done.return_value, done.stdout, done.stderr


def start(*arguments: str | Path, cwd: Path, environment: dict[str, str] | None = None, **options: Any) -> Any:
    """Start `python -m app.classify` without the settings of this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with default_sigint():
        return subprocess.Popen(
            [sys.executable, "-m", "app.classify", *map(str, arguments)],
            cwd=cwd,
            env={**kept, "PYTHONPATH": str(ROOT), **(environment or {})},
            **{**streams, **options},
        )


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, one of them large and oblong, and a text file."""
    (tmp_path / "images").mkdir()
    for name, data in (("a.png", image_file(1)), ("b.png", image_file(2)), ("c.bmp", image_file(3, kind="BMP"))):
        (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "images" / "large.png").write_bytes(photo())
    (tmp_path / "notes.txt").write_text("plain text")
    return tmp_path


IMAGES = [f"images/{name}" for name in ("a.png", "b.png", "c.bmp", "large.png")]


def url_of(running: Running) -> str:
    return f"--url=http://127.0.0.1:{running.port}"


def test_local_results_equal_those_of_the_service(folder: Path, int8_bundle: Path) -> None:
    settings = {"TENFOLD_VIEWS": "3", "TENFOLD_THREADS": "1", "TENFOLD_DEVICE": "cpu"}
    code, out, err = run(
        *("images", "notes.txt", "--format=jsonl", "--top-k=2", "--weights", int8_bundle),
        cwd=folder,
        environment=settings,
    )
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [row["path"] for row in results] == [*IMAGES, "notes.txt"]
    assert set(results[-1]) == {"path", "error"}
    assert re.search(r"^failed:\n  notes\.txt: .* accepted format", err)
    assert "4 of 5 classified by tiny " in err
    with serving(load=lambda: model.load(int8_bundle, device="cpu", threads=1), name="tiny", views=3) as running:
        for row in results[:-1]:
            assert row.pop("error") is None
            path = folder / row.pop("path")
            expected = running.post(path.read_bytes(), params={"top_k": 2}).json()
            assert row.pop("model") == expected["model"]
            assert {**row, "filename": None} == expected["results"][0]
    assert results[3]["views"] == 3


def test_the_model_of_the_service_can_be_selected(folder: Path) -> None:
    with serving(others={"b": lambda: fake_classifier(FakeEngine(), "b")}) as running:
        code, out, _ = run(url_of(running), "images/a.png", "--model=b", "--format=jsonl", cwd=folder)
        assert (code, json.loads(out)["model"]["name"]) == (0, "b")
        code, _, err = run(url_of(running), "images/a.png", "--model=c", cwd=folder)
        assert code == 2
        assert err.endswith("responded with status 404: there is no model 'c': choose one of fake-net, b\n")


def test_csv_has_a_row_for_every_file(running: Running, folder: Path) -> None:
    code, out, err = run(url_of(running), "images", "notes.txt", "nope.png", "--top-k=2", cwd=folder)
    assert code == 1
    found = rows(out)
    assert list(found[0]) == [
        *("path", "label", "probability", "label_2", "probability_2", "verdict", "accepted"),
        *("in_distribution", "views", "width", "height", "warnings", "error"),
    ]
    assert [row["error"] == "" for row in found] == [True] * 4 + [False] * 2
    expected = running.post(photo(), params={"top_k": 2}).json()["results"][0]
    assert found[3] == {
        "path": "images/large.png",
        "label": expected["top_k"][0]["label"],
        "probability": str(expected["top_k"][0]["probability"]),
        "label_2": expected["top_k"][1]["label"],
        "probability_2": str(expected["top_k"][1]["probability"]),
        "verdict": expected["verdict"],
        "accepted": str(expected["accepted"]).lower(),
        "in_distribution": str(expected["in_distribution"]),
        "views": "5",
        "width": "200",
        "height": "150",
        "warnings": "",
        "error": "",
    }
    assert "  nope.png: it cannot be read (No such file or directory)\n" in err
    assert "4 of 6 classified by fake-net " in err
    verdicts = [row["verdict"] for row in found[:4]]
    counts = (f"{verdicts.count(verdict)} {verdict}" for verdict in ("accepted", "uncertain", "other"))
    assert f"/s: {', '.join(counts)}\n" in err


def test_success_is_0_and_silent(running: Running, folder: Path) -> None:
    code, out, err = run(url_of(running), "images/*.png", "images/c.bmp", cwd=folder)
    assert (code, err) == (0, "")
    assert [row["path"] for row in rows(out)] == [IMAGES[0], IMAGES[1], IMAGES[3], IMAGES[2]]


def test_paths_on_standard_input_are_classified_as_they_arrive(running: Running, folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n.png")
    (folder / odd).write_bytes(image_file())
    with start(url_of(running), "-", "-0", cwd=folder, text=False, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"images/a.png\0")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"path,label,")
        assert process.stdout.readline().startswith(b"images/a.png,")
        out, err = process.communicate(os.fsencode(odd) + b"\0images/b.png", timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b'"caf%E9\n.png",')
    assert out.splitlines()[-1].startswith(b"images/b.png,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.png"], "error: nope.png: it cannot be read (No such file or directory)\n"),
        (["empty"], "error: empty: no images are in this folder\n"),
        (["**/*.gif"], "error: **/*.gif: nothing matches this pattern\n"),
        (["-"], "error: standard input names no files\n"),
        (["images", "-0"], "error: -0 is for paths on standard input: add - to the arguments\n"),
        (["images", "--weights=images"], "error: "),
        (["images", "--url=http://127.0.0.1:9"], "error: the service at http://127.0.0.1:9 cannot be reached "),
        (["images", "--url=http://127.0.0.1:9", "--engine=torch"], "error: --engine has no effect on a service"),
        (["images", "--model=b"], "error: --model names a model of a service: give --url too, or --weights"),
        (
            ["images", "--output=nope/out.csv"],
            "error: cannot write nope/out.csv (No such file or directory): choose another --output\n",
        ),
        (["images", "--output=images"], "error: cannot write images (Is a directory): choose another --output\n"),
        (
            ["images", "--output=/dev/full", "--device=cpu"],
            "error: cannot write /dev/full (No space left on device): free some space or choose another --output\n",
        ),
    ],
)
def test_a_command_that_cannot_run_prints_one_sentence(
    folder: Path, int8_bundle: Path, arguments: Sequence[str], message: str
) -> None:
    (folder / "empty").mkdir()
    code, out, err = run(*arguments, cwd=folder, environment={"TENFOLD_WEIGHTS": str(int8_bundle)})
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_paths_that_end_with_nul_need_an_option(folder: Path) -> None:
    code, _, err = run("-", cwd=folder, stdin=b"images/a.png\0images/b.png\0")
    assert (code, err) == (2, "error: the paths on standard input end with NUL: add -0\n")


def test_an_image_on_standard_input_is_classified(running: Running, folder: Path) -> None:
    with start(url_of(running), "-", cwd=folder, text=False, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(image_file(1), timeout=60)
    assert (process.returncode, err) == (0, b"")
    (row,) = rows(out.decode())
    assert (row["path"], row["width"]) == ("-", "32")


def test_files_of_a_folder_that_are_no_images_are_counted_and_other_image_formats_fail(
    running: Running, folder: Path
) -> None:
    for name in ("readme", "x.TXT", "y.txt"):
        (folder / "images" / name).write_text("text")
    (folder / "images" / "drawing.svg").write_bytes(b"<svg/>")
    code, out, err = run(url_of(running), "images", cwd=folder)
    assert code == 1
    assert [row["path"] for row in rows(out) if row["error"]] == ["images/drawing.svg"]
    assert "images/drawing.svg: this is an SVG drawing, which is not accepted" in err
    assert "skipped in folders, because they have no image extension: 3 files: .txt 2, no extension 1\n" in err


@pytest.mark.parametrize(
    ("name", "first"),
    [("out.jsonl", '{"path"'), ("out.NDJSON", '{"path"'), ("out", "path,"), ("out.csv", "path,"), (".csv", "path,")],
)
def test_the_format_follows_from_the_name_of_the_output(running: Running, folder: Path, name: str, first: str) -> None:
    assert run(url_of(running), "images", "-o", name, cwd=folder)[0] == 0
    assert (folder / name).read_text().startswith(first)


@pytest.mark.parametrize("name", ["out.json", "out.parquet", "out.tsv", "out.csv.gz", "out.txt", "out.jsonl.partial"])
def test_another_format_is_refused_by_the_name_of_the_output(running: Running, folder: Path, name: str) -> None:
    code, _, err = run(url_of(running), "images", "-o", name, cwd=folder)
    assert (code, err) == (
        2,
        f"error: {name}: the results are written as CSV (.csv) or JSON lines (.jsonl, .ndjson), "
        f"not as {Path(name).suffix}: choose another name, or give --format too\n",
    )
    assert list(folder.glob("out*")) == []
    assert run(url_of(running), "images", "-o", name, "--format=csv", cwd=folder)[0] == 0
    assert (folder / name).read_text().startswith("path,")


def test_names_that_are_not_utf_8_have_escapes_in_every_format(running: Running, folder: Path) -> None:
    (folder / "images" / "a.png").rename(folder / "images" / os.fsdecode(b"\xe9.png"))
    _, csv_text, _ = run(url_of(running), "images", cwd=folder)
    _, json_text, _ = run(url_of(running), "images", "--format=jsonl", cwd=folder)
    assert {row["path"] for row in rows(csv_text)} == {*IMAGES[1:], "images/%E9.png"}
    assert {json.loads(line)["path"] for line in json_text.splitlines()} == {*IMAGES[1:], "images/%E9.png"}


@pytest.mark.parametrize("output_format", ["csv", "jsonl"])
@pytest.mark.parametrize("cut", [0, 3])
def test_an_interrupted_run_is_continued(running: Running, folder: Path, output_format: str, cut: int) -> None:
    """After two results, or in the middle of the third."""
    name = f"out.{output_format}"
    (folder / "images" / "b.png").rename(folder / "images" / "b\n.png")
    run(url_of(running), "images", "-o", name, cwd=folder)
    whole = (folder / name).read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = b"".join(lines[:4] if output_format == "csv" else lines[:2])
    (folder / f"{name}.partial").write_bytes(whole[: len(kept) + cut])
    code, _, err = run(url_of(running), "images", "-o", name, cwd=folder)
    assert code == 0
    assert err == f"{name}.partial has 2 results: continuing from there\n"
    assert (folder / name).read_bytes() == whole


@pytest.mark.parametrize(
    ("partial", "arguments", "reason"),
    [
        ("path,label,error\na.png,cat,\n", ["images"], "it has other columns"),
        (None, ["images/c.bmp"], "it has results of other files"),
        (None, ["images", "--top-k=2"], "it has other columns"),
        (None, ["images", "--format=jsonl"], "it has other contents"),
    ],
)
def test_results_of_another_run_are_not_continued(
    running: Running, folder: Path, partial: str | None, arguments: Sequence[str], reason: str
) -> None:
    if partial is None:
        partial = run(url_of(running), "images", cwd=folder)[1]
    (folder / "out.csv.partial").write_text(partial)
    code, _, err = run(url_of(running), *arguments, "-o", "out.csv", cwd=folder)
    assert code == 2
    assert err == (
        f"error: out.csv.partial cannot be continued, because {reason}: remove it, or give the arguments of that run\n"
    )
    assert (folder / "out.csv.partial").read_text() == partial


def test_a_process_ends_with_the_exit_code(folder: Path) -> None:
    process = start("nope.png", cwd=folder)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "error: nope.png: it cannot be read (No such file or directory)\n"


def test_a_closed_standard_output_ends_the_command(running: Running, folder: Path) -> None:
    with start(url_of(running), *["images"] * 500, cwd=folder) as process:
        assert process.stdout.readline().startswith("path,")
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""


def test_ctrl_c_keeps_the_results_so_far_and_the_old_file(folder: Path) -> None:
    engine = FakeEngine()
    engine.seconds = 0.2
    old, partial = folder / "out.csv", folder / "out.csv.partial"
    old.write_text("old")
    arguments = [*["images"] * 500, "--output=out.csv"]
    with serving(engine) as running, start(url_of(running), *arguments, cwd=folder) as process:
        eventually(lambda: partial.exists() and partial.stat().st_size > 0, "the first results are written")
        # A result is counted after it was written, so the first ones are counted when there are more.
        first = partial.stat().st_size
        eventually(lambda: partial.stat().st_size > first, "further results are written")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "the results so far are in out.csv.partial" in err
    assert re.search(r"^[\d,]+ of 2,000 classified", err, re.MULTILINE)
    assert old.read_text() == "old"
    assert len(rows(partial.read_text())) >= 1


def test_the_output_file_is_replaced_at_the_end(running: Running, folder: Path) -> None:
    (folder / "out.jsonl").write_text("old")
    code, out, _ = run(url_of(running), "images", "notes.txt", "--format=jsonl", "-o", "out.jsonl", cwd=folder)
    assert (code, out) == (1, "")
    results = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["error"] is None for row in results] == [True] * 4 + [False]
    assert not (folder / "out.jsonl.partial").exists()


def test_a_terminal_shows_a_table_or_a_bar(running: Running, folder: Path) -> None:
    (folder / "images" / "\x1b[31m.png").write_bytes(b"plain text")
    terminal, child_terminal = pty.openpty()
    process = start(url_of(running), "images", cwd=folder, stdout=child_terminal)
    err = process.communicate(timeout=60)[1]
    table = os.read(terminal, 65536).decode().replace("\r\n", "\n").splitlines()
    assert process.returncode == 1
    assert table[0].split() == ["class", "verdict", "file"]
    assert re.match(r"-  .*images/\\x1b\[31m\.png: .* accepted format", table[1])
    assert table[2].endswith("  images/a.png")
    assert "\x1b" not in err

    process = start(url_of(running), "images", cwd=folder, stderr=child_terminal, environment={"TERM": "xterm"})
    out = process.communicate(timeout=60)[0]
    bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(terminal, 65536).decode())
    os.close(child_terminal)
    os.close(terminal)
    assert len(rows(out)) == 5
    assert "━" in bar
    assert re.search(r"[05]/[5?] ", bar)
    assert "4 of 5 classified by fake-net " in bar


def test_files_after_the_service_has_stopped_are_reported_as_failed(folder: Path) -> None:
    engine = FakeEngine()
    engine.seconds = 0.3
    with serving(engine) as running:
        process = start(url_of(running), *["images"] * 100, "--patience=1", "--output=out.csv", cwd=folder)
        partial = folder / "out.csv.partial"
        eventually(lambda: partial.exists() and partial.stat().st_size > 0, "the first results are written")
        running.server.should_exit = True
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    found = rows((folder / "out.csv").read_text())
    assert len(found) == 400
    classified = sum(row["error"] == "" for row in found)
    assert 0 < classified < 400
    assert f"and {400 - classified - 100:,} more" in err or 400 - classified <= 100
    assert f"{classified} of 400 classified" in err
    assert "retrying for 1 s" in err
