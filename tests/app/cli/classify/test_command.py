"""The command as people run it: a process, its streams and its exit code."""

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
from pathlib import Path
from typing import Any

import pytest

import model
from tests.app.fakes import FakeEngine, photo, picture
from tests.app.running import ROOT, Running, eventually, serving

pytestmark = pytest.mark.timeout(300)


def start(*arguments: str | Path, cwd: Path, environment: dict[str, str] | None = None, **options: Any) -> Any:
    """The process `python -m app.classify`, where no setting is made."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "app.classify", *map(str, arguments)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **(environment or {})},
        **{**streams, **options},
    )


def run(*arguments: str | Path, cwd: Path, **options: Any) -> tuple[int, str, str]:
    """Its exit code, what it printed, and what it said beside."""
    process = start(*arguments, cwd=cwd, **options)
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, one of them large and oblong, and a file that is none."""
    (tmp_path / "pictures").mkdir()
    for name, data in (("a.png", picture(1)), ("b.png", picture(2)), ("c.bmp", picture(3, kind="BMP"))):
        (tmp_path / "pictures" / name).write_bytes(data)
    (tmp_path / "pictures" / "large.png").write_bytes(photo())
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def to(running: Running) -> str:
    return f"--url=http://127.0.0.1:{running.port}"


def test_here_it_answers_as_the_service_does(folder: Path, int8_bundle: Path) -> None:
    settings = {"TENFOLD_VIEWS": "3", "TENFOLD_THREADS": "1", "TENFOLD_DEVICE": "cpu"}
    code, out, err = run(
        *("pictures", "notes.txt", "--format=jsonl", "--top-k=2", "--weights", int8_bundle),
        cwd=folder,
        environment=settings,
    )
    said = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [row["path"] for row in said] == [
        *(f"pictures/{name}" for name in ("a.png", "b.png", "c.bmp", "large.png")),
        "notes.txt",
    ]
    assert set(said[-1]) == {"path", "error"}
    assert "notes.txt: this is not a picture in an accepted format" in err
    assert "4 of 5 answered by tiny " in err
    with serving(load=lambda: model.load(int8_bundle, device="cpu", threads=1), views=3) as running:
        for row in said[:-1]:
            assert row.pop("error") is None
            path = folder / row.pop("path")
            expected = running.post(path.read_bytes(), params={"top_k": 2}).json()
            assert row.pop("model") == expected["model"]
            assert {**row, "filename": None} == expected["results"][0]
    assert said[3]["views"] == 3


def test_csv_has_a_row_for_every_file(running: Running, folder: Path) -> None:
    code, out, err = run(to(running), "pictures", "notes.txt", "nope.png", "--top-k=2", cwd=folder)
    assert code == 1
    found = rows(out)
    assert list(found[0]) == [
        *("path", "label", "probability", "label_2", "probability_2", "accepted", "in_distribution"),
        *("views", "width", "height", "warnings", "error"),
    ]
    assert [row["error"] == "" for row in found] == [True] * 4 + [False] * 2
    answer = running.post(photo(), params={"top_k": 2}).json()["results"][0]
    assert found[3] == {
        "path": "pictures/large.png",
        "label": answer["top_k"][0]["label"],
        "probability": str(answer["top_k"][0]["probability"]),
        "label_2": answer["top_k"][1]["label"],
        "probability_2": str(answer["top_k"][1]["probability"]),
        "accepted": str(answer["accepted"]).lower(),
        "in_distribution": str(answer["in_distribution"]),
        "views": "2",
        "width": "200",
        "height": "150",
        "warnings": "",
        "error": "",
    }
    assert "  nope.png: it cannot be read (No such file or directory)\n" in err
    assert "4 of 6 answered by fake-net " in err


def test_all_answered_is_0_and_nothing_is_said_beside(running: Running, folder: Path) -> None:
    code, out, err = run(to(running), "pictures/*.png", "pictures/c.bmp", cwd=folder)
    assert (code, err) == (0, "")
    assert [row["path"] for row in rows(out)] == [
        f"pictures/{name}" for name in ("a.png", "b.png", "large.png", "c.bmp")
    ]


def test_a_list_on_standard_input_is_answered_as_it_comes(running: Running, folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n.png")
    (folder / odd).write_bytes(picture())
    with start(to(running), "-", "-0", cwd=folder, text=False, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"pictures/a.png\0")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"path,label,")
        assert process.stdout.readline().startswith(b"pictures/a.png,")
        out, err = process.communicate(os.fsencode(odd) + b"\0pictures/b.png", timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b'"caf\xe9\n.png",')
    assert out.splitlines()[-1].startswith(b"pictures/b.png,")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope.png"], "error: nope.png: it cannot be read (No such file or directory)\n"),
        (["empty"], "error: empty: no pictures are in this folder\n"),
        (["**/*.gif"], "error: **/*.gif: nothing matches this pattern\n"),
        (["-"], "error: standard input names no files\n"),
        (["pictures", "--weights=pictures"], "error: "),
        (["pictures", "--url=http://127.0.0.1:9"], "error: no service answers at http://127.0.0.1:9 "),
        (["pictures", "--url=http://127.0.0.1:9", "--engine=torch"], "error: --engine is for classifying here"),
        (["pictures", "--output=nope/out.csv"], "error: cannot write nope/out.csv (No such file or directory)"),
    ],
)
def test_where_nothing_can_be_done_a_sentence_says_why(folder: Path, arguments: Sequence[str], says: str) -> None:
    (folder / "empty").mkdir()
    code, out, err = run(*arguments, cwd=folder)
    assert (code, out) == (2, "")
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_nobody_reads_on(running: Running, folder: Path) -> None:
    many = ["pictures"] * 500
    with start(to(running), *many, cwd=folder) as process:
        assert process.stdout.readline().startswith("path,")
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""


def test_a_full_disk_is_told_of(running: Running, folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, _, err = run(to(running), "pictures", cwd=folder, stdout=full)
    assert code == 2
    assert err == "error: cannot write the results (No space left on device): make room or choose another --output\n"


def test_ctrl_c_keeps_what_was_answered_and_leaves_the_old_file(folder: Path) -> None:
    engine = FakeEngine()
    engine.seconds = 0.2
    old, partial = folder / "out.csv", folder / "out.csv.partial"
    old.write_text("old")
    with serving(engine) as running, start(to(running), *["pictures"] * 500, "--output=out.csv", cwd=folder) as process:
        eventually(lambda: partial.exists() and partial.stat().st_size > 0, "the first are answered")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "what was answered is in out.csv.partial" in err
    assert old.read_text() == "old"
    assert len(rows(partial.read_text())) >= 1


def test_a_file_takes_its_place_when_it_is_whole(running: Running, folder: Path) -> None:
    (folder / "out.jsonl").write_text("old")
    code, out, _ = run(to(running), "pictures", "notes.txt", "--format=jsonl", "-o", "out.jsonl", cwd=folder)
    assert (code, out) == (1, "")
    said = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["error"] is None for row in said] == [True] * 4 + [False]
    assert not (folder / "out.jsonl.partial").exists()


def test_a_terminal_gets_a_table_or_a_bar(running: Running, folder: Path) -> None:
    (folder / "pictures" / "\x1b[31m.png").write_bytes(b"no picture")
    ours, theirs = pty.openpty()
    process = start(to(running), "pictures", cwd=folder, stdout=theirs, stderr=subprocess.PIPE)
    err = process.communicate(timeout=60)[1]
    table = os.read(ours, 65536).decode().replace("\r\n", "\n").splitlines()
    assert process.returncode == 1
    assert table[0].split() == ["class", "accepted", "picture"]
    assert table[1].startswith("-  ")
    assert "pictures/\\x1b[31m.png: this is not a picture" in table[1]
    assert table[2].endswith("  pictures/a.png")
    assert "\x1b" not in err

    process = start(to(running), "pictures", cwd=folder, stderr=theirs, environment={"TERM": "xterm"})
    out = process.communicate(timeout=60)[0]
    bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(ours, 65536).decode())
    os.close(theirs)
    os.close(ours)
    assert len(rows(out)) == 5
    assert "━" in bar
    assert re.search(r"[05]/[5?] ", bar)
    assert "4 of 5 answered by fake-net " in bar


def test_the_service_goes_away_meanwhile(folder: Path) -> None:
    engine = FakeEngine()
    engine.seconds = 0.1
    with serving(engine) as running:
        process = start(to(running), *["pictures"] * 100, "--patience=1", "--output=out.csv", cwd=folder)
        partial = folder / "out.csv.partial"
        eventually(lambda: partial.exists() and partial.stat().st_size > 0, "the first are answered")
        running.server.should_exit = True
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    found = rows((folder / "out.csv").read_text())
    assert len(found) == 400
    answered = sum(row["error"] == "" for row in found)
    assert 0 < answered < 400
    assert f"and {400 - answered - 100:,} more" in err or 400 - answered <= 100
    assert f"{answered} of 400 answered" in err
    assert "trying again for 1 s" in err
