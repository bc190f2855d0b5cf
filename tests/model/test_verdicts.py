"""The verdicts of the shipped bundles on generated images: one colour, noise, text and windows."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import model
from model import MAX_VIEWS, Classifier, preprocess
from tests.app.running import ROOT
from tests.shipped import for_each_bundle

Generator = Callable[[np.random.Generator], Iterator[Image.Image]]

WORDS = ("total", "status", "page", "report", "error", "settings", "update", "of", "the", "and", "to", "a", "in")


def verdicts(classifier: Classifier, images: Iterator[Image.Image]) -> Counter[str]:
    """How often each verdict is given to these images, sent as PNG with all views, as by default."""
    pixels = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        pixels.append(preprocess(file.getvalue(), classifier.card.input, max_pixels=10**7, views=MAX_VIEWS).pixels)
    return Counter(prediction.verdict() for prediction in classifier.classify(pixels))


def colours(rng: np.random.Generator) -> Iterator[Image.Image]:
    for colour in [(0, 0, 0), (255, 255, 255), (128, 128, 128), *rng.integers(0, 256, (60, 3)).tolist()]:
        width, height = rng.integers(1, 500, 2)
        yield Image.new("RGB", (int(width), int(height)), tuple(colour))


def noise(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Gaussian and uniform noise, grey and coloured. A larger image has a lower contrast after resizing."""
    for side in (32, 40, 64, 100, 200, 400):
        for channels in (1, 3):
            for deviation in (10, 40, 80):
                values = rng.normal(rng.uniform(60, 190), deviation, (side, side, channels)).clip(0, 255)
                yield Image.fromarray(np.broadcast_to(values, (side, side, 3)).astype(np.uint8))
            values = rng.integers(0, 256, (side, side, channels))
            yield Image.fromarray(np.broadcast_to(values, (side, side, 3)).astype(np.uint8))


def text(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Pages of text in several sizes, dark on light and light on dark."""
    for size in (10, 14, 20, 28, 40, 72):
        font = ImageFont.load_default(size)
        for width, height in ((595, 842), (800, 600), (400, 400)):
            for paper, ink in (("white", "black"), ("#202124", "#e8eaed")):
                page = Image.new("RGB", (width, height), paper)
                draw = ImageDraw.Draw(page)
                for top in range(10, height, round(1.4 * size)):
                    draw.text((12, top), " ".join(rng.choice(WORDS, int(rng.integers(3, 20)))), fill=ink, font=font)
                yield page


def windows(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Screenshots of a window with a title, a menu and panels of text."""
    font = ImageFont.load_default(13)
    for number in range(40):
        width, height = ((640, 480), (800, 600), (1280, 720))[number % 3]
        paper, ink, panel = (("#f5f5f5", "black", "white"), ("#1e1e1e", "#d4d4d4", "#2d2d30"))[number % 2]
        screen = Image.new("RGB", (width, height), paper)
        draw = ImageDraw.Draw(screen)
        accent = tuple(rng.integers(0, 256, 3).tolist())
        draw.rectangle((0, 0, width, 28), fill=accent)
        for top in range(40, height, 24):
            draw.text((10, top), str(rng.choice(WORDS)), fill=ink, font=font)
        for left, top in rng.integers([120, 40], [width - 200, height - 80], (5, 2)).tolist():
            right, bottom = left + int(rng.integers(100, 300)), top + int(rng.integers(40, 160))
            draw.rounded_rectangle((left, top, right, bottom), 6, fill=panel, outline=accent)
            for line in range(top + 4, bottom - 12, 16):
                draw.text((left + 6, line), " ".join(rng.choice(WORDS, 4)), fill=ink, font=font)
        yield screen


@for_each_bundle
@pytest.mark.parametrize("kind", [colours, noise], ids=["colours", "noise"])
def test_images_without_content_are_other(shipped: Path, kind: Generator) -> None:
    found = verdicts(model.load(shipped, device="cpu"), kind(np.random.default_rng(0)))
    assert set(found) == {"other"}, found


@pytest.mark.parametrize("kind", [text, windows], ids=["text", "windows"])
def test_text_and_windows_are_other(kind: Generator) -> None:
    """All of them, as measured; with room for the numerics of another CPU."""
    found = verdicts(model.load(ROOT / "weights" / "resnet18-cifar10", device="cpu"), kind(np.random.default_rng(0)))
    assert found["other"] >= 0.9 * found.total(), found
    assert not found["accepted"], found
