"""Hostile images over real HTTP: each gets its documented response, and ten thousand leave the service unharmed."""

import io
import random
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.http.problems import TABLE
from model import ImageTooLarge, UnreadableImage, UnsupportedImage, preprocess
from model.decode import FORMATS
from tests.app.fakes import CARD, image_file, photo
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Process, Running, process
from tests.hostile import BOMBS, OK, Sample, bombs, corpus, many_pieces
from tests.memory import anonymous, forget_peak, peak, resident

KINDS = {
    TABLE[cls].status: f"urn:tenfold:{TABLE[cls].slug}" for cls in (ImageTooLarge, UnsupportedImage, UnreadableImage)
}


def as_sent(sample: Sample) -> dict[str, Any]:
    """The fields that the result for one of several images must contain."""
    if sample.status == OK:
        return {"width": sample.size[0], "height": sample.size[1], "warnings": list(sample.warnings)}
    return {"status": sample.status, "type": KINDS[sample.status]}


@pytest.mark.parametrize("sample", corpus(), ids=lambda sample: sample.name)
def test_every_hostile_image_gets_its_documented_response(sample: Sample, running: Running) -> None:
    answer = running.post(sample.data)
    if sample.status != OK:
        assert is_a_problem(answer, sample.status)["type"] == KINDS[sample.status]
        return
    assert answer.status_code == OK, answer.text
    (result,) = answer.json()["results"]
    assert result.items() >= as_sent(sample).items()
    assert len(result["top_k"]) == 5


@pytest.mark.parametrize("sample", corpus(), ids=lambda sample: sample.name)
def test_a_hostile_image_is_explained_or_gets_its_documented_response(sample: Sample, running: Running) -> None:
    answer = running.client.post("/explain", content=sample.data, params={"format": "png"})
    if sample.status != OK:
        assert is_a_problem(answer, sample.status)["type"] == KINDS[sample.status]
        return
    assert answer.status_code == OK, answer.text
    drawn = Image.open(io.BytesIO(answer.content))
    scale = min(1, 1024 / max(sample.size))
    assert drawn.size == tuple(max(1, round(side * scale)) for side in sample.size)


def test_each_gets_its_own_result_among_others(running: Running) -> None:
    answered = list[dict[str, Any]]()
    small = [sample for sample in corpus() if len(sample.data) < 100_000]
    for start in range(0, len(small), 30):
        samples = small[start : start + 30]
        answer = running.upload(*[(f"{sample.name}.png", sample.data) for sample in samples], params={"views": 1})
        assert answer.status_code == OK, answer.text
        answered += answer.json()["results"]
    for sample, result in zip(small, answered, strict=True):
        assert result["filename"] == f"{sample.name}.png"
        assert result.get("problem", result).items() >= as_sent(sample).items(), sample.name


@pytest.mark.parametrize("content_type", ["image/gif", "image/x-icon", "image/svg+xml", "application/octet-stream"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_wrong_content_type_does_not_matter(kind: str, content_type: str, running: Running) -> None:
    answer = running.post(image_file(kind=kind), headers={"Content-Type": content_type})
    assert answer.status_code == OK


@pytest.mark.parametrize(
    "name", ["a.exe", "cat.gif", "../../etc/passwd", "a.png\0.html", "<script>", "x" * 1000, "猫.txt"]
)
def test_a_wrong_extension_does_not_matter(name: str, running: Running) -> None:
    (result,) = running.upload((name, image_file())).json()["results"]
    assert "problem" not in result
    (result, _) = running.upload((name, b"no image"), ("b.png", image_file())).json()["results"]
    assert result["problem"]["status"] == 415
    assert result["filename"]


# Bombs


def test_there_are_bombs_of_every_accepted_format() -> None:
    assert {*FORMATS, "MPO"} - {"HEIF"} <= set(BOMBS)


@pytest.mark.parametrize("sample", list(bombs()), ids=lambda sample: sample.name)
def test_a_bomb_is_refused_by_its_header(sample: Sample, running: Running) -> None:
    """The service runs in this process, so its memory and its CPU time are ours."""
    running.post(sample.data)
    forget_peak("self")
    before, began = resident("self"), time.process_time()
    answer = running.post(sample.data)
    spent = time.process_time() - began
    assert answer.status_code == sample.status
    assert peak("self") - before < 8_000_000, "pixels were decoded"
    assert spent < 0.5, "pixels were decoded"
    if " of " in sample.name:
        width, height = sample.name.split(" of ")[1].split(" x ")
        assert f"the image has {width} x {height} pixels" in answer.json()["detail"]


@pytest.mark.parametrize("name", [sample.name for sample in many_pieces(0)])
def test_what_would_take_minutes_takes_seconds(name: str) -> None:
    (sample,) = (sample for sample in many_pieces(5_000_000) if sample.name == name)
    forget_peak("self")
    before, began = resident("self"), time.process_time()
    with nullcontext() if sample.status == OK else pytest.raises(UnreadableImage):
        preprocess(sample.data, CARD.input, max_pixels=50_000_000)
    assert time.process_time() - began < 2
    assert peak("self") - before < 10 * len(sample.data)


def test_the_memory_of_a_damaged_image_is_free_after_its_response(int8_bundle: Path, tmp_path: Path) -> None:
    """Also without a run of the garbage collector."""
    width, height = 2400, 1600
    with io.BytesIO() as file:
        Image.new("RGB", (width, height)).save(file, "BMP")
        damaged = file.getvalue()[:-10_000]
    held = 4 * width * height + len(damaged)
    environment = {"TENFOLD_PORT": "0", "TENFOLD_WEIGHTS": str(int8_bundle), "TENFOLD_DEVICE": "cpu"}
    with process(environment, tmp_path / "log") as running:
        running.wait_ready()
        with running.client() as client:
            for path in ("/predict", "/explain"):
                before = anonymous(running.popen.pid)
                for _ in range(6):
                    assert is_a_problem(client.post(path, content=damaged), 422)
                    assert anonymous(running.popen.pid) - before < 2 * held, path


# Fuzz

UPLOADS = 10_000
EACH = 25
SENDERS = 3


def mutated(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """The file with some bytes flipped, cut out, put in, or exchanged for another file's."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        where = dice.randrange(min(len(changed), dice.choice((32, 256, 100_000))) or 1)
        match dice.randrange(7):
            case 0 if changed:
                changed[where] ^= 1 << dice.randrange(8)
            case 1:
                changed[where : where + 4] = dice.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
            case 2:
                del changed[where : where + dice.choice((1, 4, 100))]
            case 3:
                changed[where:where] = dice.randbytes(dice.choice((1, 4, 100)))
            case 4:
                del changed[dice.randrange(len(changed) + 1) :]
            case 5:
                changed[where:] = dice.choice(others)[where:]
            case 6:
                changed[where : where + 8] = changed[: dice.randrange(9)]
    return bytes(changed) or b"\0"


class Sender:
    """A client that uploads mutated images on a kept-alive connection, several a request.

    Attributes:
        statuses: how often each status came, those inside results included.
        failed: the exception that ended it.
    """

    def __init__(self, port: int, seed: int, uploads: int) -> None:
        self.statuses = Counter[int]()
        self.failed: BaseException | None = None
        self._port, self._seed, self._uploads = port, seed, uploads
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._send()
        except BaseException as error:
            self.failed = error

    def _send(self) -> None:
        dice = random.Random(self._seed)
        # Large ones would make this a test of the network.
        files = [sample.data for sample in corpus() if len(sample.data) < 20_000]
        files += [photo(number) for number in range(10)]
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60) as client:
            for _ in range(self._uploads // EACH):
                bodies = [mutated(dice.choice(files), files, dice) for _ in range(EACH)]
                answer = client.post("/predict", files=[("file", ("a", body)) for body in bodies])
                self.statuses[answer.status_code] += 1
                assert answer.status_code == OK, answer.text
                results = answer.json()["results"]
                assert len(results) == EACH
                self.statuses.update(result.get("problem", {"status": OK})["status"] for result in results)

    def join(self) -> Counter[int]:
        """Wait for the end, and return how often each status came."""
        self._thread.join()
        if self.failed:
            raise self.failed
        return self.statuses


def send(running: Process, seed: int, uploads: int) -> Counter[int]:
    """Upload this number of mutated images, and count the responses by status."""
    senders = [Sender(running.port, seed + number, uploads // SENDERS) for number in range(SENDERS)]
    return sum((sender.join() for sender in senders), Counter[int]())


def settled(running: Process) -> int:
    """The anonymous memory that it needs, bytes.

    The last images of a load may still be in memory when their responses arrive, so the smallest of several readings
    counts. A leak is in all of them.
    """
    readings = list[int]()
    for seed in range(5_000, 5_005):
        send(running, seed, EACH * SENDERS)
        readings.append(anonymous(running.popen.pid))
    return min(readings)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_hostile_uploads_leave_the_service_as_it_was(int8_bundle: Path, tmp_path: Path) -> None:
    environment = {
        "TENFOLD_PORT": "0", "TENFOLD_WEIGHTS": str(int8_bundle), "TENFOLD_DEVICE": "cpu", "TENFOLD_THREADS": "1",
        "TENFOLD_TIMEOUT": "60",
    }  # fmt: skip
    with process(environment, tmp_path / "log") as running:
        running.wait_ready()
        send(running, 1_000, 3_000)
        before = settled(running)
        statuses = send(running, 0, UPLOADS + EACH * SENDERS)
        after = settled(running)
        with running.client() as client:
            assert client.get("/readyz").status_code == 200
            assert client.post("/predict", content=image_file()).status_code == 200
    print(f"memory {before / 1e6:.0f} MB, then {after / 1e6:.0f} MB; answers {dict(statuses)}")
    assert set(statuses) == {OK, *KINDS}, "mutations that all end alike are too weak or too strong"
    assert sum(statuses.values()) >= UPLOADS
    assert after < 1.1 * before, f"{before / 1e6:.0f} MB became {after / 1e6:.0f} MB"
    assert "Traceback" not in running.log
    assert "Warning" not in running.log
