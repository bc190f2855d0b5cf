"""How much memory and time decoding takes at most, measured, and that `decode_memory` never estimates less."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from model.card import InputSpec
from model.errors import ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage
from model.image import decode_memory, preprocess
from tests.hostile import HEAVY, Heavy, Sample, announcing, blank_png, corpus, encoded, photo

LIMIT = 50_000_000
MOST = 350_000_000
"""Bytes that decoding one image may take with this limit."""

# Prints for each file: the outcome, estimate and peak of preprocess, estimate and peak of overlay, seconds of CPU.
MEASURE = """
import ctypes, gc, json, re, sys, time
from pathlib import Path
import numpy as np
import model
from model.card import InputSpec

spec = InputSpec(resize=32, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def peak(run):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    try:
        result = run()
    except model.ImageError as error:
        result = error
    return result, status("VmHWM") - before

def measured(data):
    limits = {"max_pixels": 50_000_000}
    began = time.process_time()
    estimate = to_draw = 0
    try:
        estimate = model.decode_memory(data, side=spec.resize, **limits)
        to_draw = model.overlay_memory(data, **limits)
    except model.ImageError:
        pass
    image, memory = peak(lambda: model.preprocess(data, spec, views=model.MAX_VIEWS, **limits))
    seconds = time.process_time() - began
    if isinstance(image, model.ImageError):
        return type(image).__name__, estimate, memory, to_draw, 0, seconds
    maps = np.ones((len(image.pixels), 4, 4), np.float32)
    _, drawing = peak(lambda: model.overlay(data, image, maps, **limits))
    return "ok", estimate, memory, to_draw, drawing, seconds

files = [Path(line).read_bytes() for line in sys.stdin.read().split()]
for data in files[: int(sys.argv[1])]:
    measured(data)  # what is loaded once
for data in files[int(sys.argv[1]):]:
    print(json.dumps(measured(data)), flush=True)
"""


class Measured(NamedTuple):
    """The outcome, estimate and peak of preprocess, estimate and peak of overlay, bytes, and the seconds of CPU."""

    outcome: str
    estimate: int
    memory: int
    to_draw: int
    drawing: int
    seconds: float


def measure(files: list[bytes], folder: Path) -> list[Measured]:
    """Decode files in a process of its own, one after another."""
    first = [encoded(photo(size=(300, 200)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]
    first += [encoded(photo("RGBA"), "PNG"), encoded(photo("CMYK"), "JPEG"), encoded(photo("LAB"), "TIFF")]
    paths = [folder / str(number) for number in range(len(first) + len(files))]
    for path, data in zip(paths, [*first, *files], strict=True):
        path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(len(first))],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return [Measured(*json.loads(line)) for line in done.stdout.splitlines()]


def check(heavy: Heavy, found: Measured) -> None:
    """What holds for every file."""
    about = f"{heavy.name}: {found}"
    if heavy.refused:
        assert found.outcome == "ImageTooLarge", about
        assert found.memory < 20_000_000, about
    else:
        assert found.outcome == "ok", about
        assert found.memory <= found.estimate <= MOST, about
        assert found.drawing <= found.to_draw, about
    assert found.seconds < 6, about  # 1.5 on an idle core


needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


# One of each kind that is quick to make.
QUICK = (
    "PNG of grey and alpha, 100 x 500,000", "PNG of one bit, 8 x 6,250,000", "PNG with 60 compressed texts",
    "TIFF of 3,000 strips", "TIFF by fax, 50,000,000 x 1", "WebP of 34 bytes", "WebP of 34 bytes, larger",
    "BMP in run lengths, larger", "JPEG of 25 scans",
)  # fmt: skip


@needs_linux
def test_no_small_file_takes_much_memory(tmp_path: Path) -> None:
    files = [heavy for heavy in HEAVY if heavy.name in QUICK]
    assert len(files) == len(QUICK)
    for heavy, found in zip(files, measure([heavy.make() for heavy in files], tmp_path), strict=True):
        check(heavy, found)


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize("start", range(0, len(HEAVY), 8))
def test_no_file_of_any_kind_takes_much_memory(start: int, tmp_path: Path) -> None:
    files = HEAVY[start : start + 8]
    for heavy, found in zip(files, measure([heavy.make() for heavy in files], tmp_path), strict=True):
        print(heavy.name, found)
        check(heavy, found)


@pytest.mark.slow
@needs_linux
def test_the_estimate_is_never_too_low_for_the_hostile_corpus(tmp_path: Path) -> None:
    samples = [sample for sample in corpus() if len(sample.data) < 100_000]
    for sample, found in zip(samples, measure([sample.data for sample in samples], tmp_path), strict=True):
        if found.outcome == "ok":
            assert found.memory <= found.estimate, f"{sample.name}: {found}"


# Large images that are not hostile


def noisy(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size)


@pytest.mark.slow
@needs_linux
def test_large_photos_are_decoded_and_not_overestimated(tmp_path: Path) -> None:
    photos = {
        "12 megapixels in JPEG": (encoded(noisy((4000, 3000)), "JPEG", quality=75), 30e6),
        "48 megapixels in JPEG": (encoded(Image.new("RGB", (8000, 6000)), "JPEG"), 40e6),
        "24 megapixels in WebP": (encoded(Image.new("RGB", (6000, 4000)), "WEBP", quality=20, method=0), 310e6),
        "50 megapixels in PNG": (blank_png(7071, 7071, 8, 2), 230e6),
    }
    found = measure([data for data, _ in photos.values()], tmp_path)
    for (name, (_, bound)), photo_found in zip(photos.items(), found, strict=True):
        assert photo_found.outcome == "ok", name
        assert photo_found.memory <= photo_found.estimate < bound, f"{name}: {photo_found}"


@pytest.mark.parametrize("size", [(300, 1100), (520, 550), (1100, 300), (12_000, 40), (40, 12_000)], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_of_a_large_image_are_converted_as_the_whole(size: tuple[int, int], orientation: int) -> None:
    """The same colours, transparent over white, as a small image has; Pillow's own resize is the reference."""
    spec = InputSpec(resize=32, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)
    dice = np.random.default_rng(0)
    stored = Image.fromarray(dice.integers(0, 256, (size[1], size[0], 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    upright = stored if turn is None else stored.transpose(Image.Transpose(turn))
    white = Image.new("RGB", upright.size, "white")
    white.paste(upright, mask=upright.getchannel("A"))
    found = preprocess(encoded(stored, "PNG", exif=exif), spec, max_pixels=LIMIT)
    assert (found.width, found.height) == upright.size
    expected = preprocess(encoded(white, "PNG"), spec, max_pixels=LIMIT)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    short = min(upright.size)
    if max(upright.size) <= 16 * short:
        whole = white.resize((32 * upright.width // short, 32 * upright.height // short), Image.Resampling.BILINEAR)
        left, top = round((whole.width - 32) / 2), round((whole.height - 32) / 2)
        np.testing.assert_array_equal(found.pixels[0], np.asarray(whole.crop((left, top, left + 32, top + 32))))


# The estimate alone


def test_the_estimate_is_that_of_the_size_at_which_a_jpeg_is_decoded() -> None:
    small, large = (encoded(Image.new("RGB", size), "JPEG") for size in ((1000, 750), (4000, 3000)))
    assert decode_memory(large, side=32, max_pixels=LIMIT) < 2 * decode_memory(small, side=32, max_pixels=LIMIT)
    assert decode_memory(large, side=1000, max_pixels=LIMIT) > 12_000_000 * 4


def test_the_estimate_raises_as_decoding_does() -> None:
    with pytest.raises(UnsupportedImage, match="upload JPEG, PNG"):
        decode_memory(b"hello", side=32, max_pixels=LIMIT)
    with pytest.raises(UnreadableImage, match="header is damaged"):
        decode_memory(b"\x89PNG\r\n\x1a\n" + bytes(40), side=32, max_pixels=LIMIT)
    with pytest.raises(ImageTooLarge, match="7072 x 7072 pixels, more than 50,000,000"):
        decode_memory(announcing("PNG", 7072, 7072), side=32, max_pixels=LIMIT)
    with pytest.raises(ImageTooLarge, match="too much memory or time"):
        decode_memory(announcing("WEBP", 7000, 7000), side=32, max_pixels=LIMIT)


@pytest.mark.parametrize("sample", corpus(), ids=lambda sample: sample.name)
def test_what_the_estimate_refuses_decoding_refuses_too(sample: Sample) -> None:
    spec = InputSpec(resize=32, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)
    try:
        decode_memory(sample.data, side=32, max_pixels=LIMIT)
    except ImageError as error:
        with pytest.raises(type(error)):
            preprocess(sample.data, spec, max_pixels=LIMIT)


def test_memory_is_limited_in_proportion_to_the_pixels() -> None:
    data = announcing("WEBP", 3000, 3000)
    assert decode_memory(data, side=32, max_pixels=LIMIT) > 100_000_000
    with pytest.raises(ImageTooLarge, match="too much memory"):
        decode_memory(data, side=32, max_pixels=10_000_000)


def test_a_header_that_contradicts_the_file_is_refused(spec: InputSpec) -> None:
    png = encoded(Image.new("L", (64, 64)), "PNG")
    second = announcing("PNG", 5000, 5000)[8:33]
    with pytest.raises(UnreadableImage):
        preprocess(png[:33] + second + png[33:], spec, max_pixels=LIMIT)


def test_an_image_sequence_of_avif_is_estimated_by_its_first_frame(spec: InputSpec) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (600, 400), colour) for colour in ("red", "blue")]
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:], speed=10)
    estimate = decode_memory(file.getvalue(), side=32, max_pixels=LIMIT)
    assert 8 * 240_000 < estimate < 80 * 240_000
    image = preprocess(file.getvalue(), spec, max_pixels=LIMIT)
    assert image.warnings == ("only the first frame counts",)
    assert image.pixels[0, 16, 16, 0] > 240
