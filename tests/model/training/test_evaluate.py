import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.card import InputSpec
from model.image import test_transform as transform
from model.training.data import Pictures
from model.training.evaluate import measure, score


def logits_of(probabilities: list[list[float]]) -> NDArray[np.float32]:
    return np.log(np.array(probabilities, np.float32)) + np.float32(7)  # a constant changes nothing


def test_scores_by_hand() -> None:
    truth = np.array([0, 1, 1, 0])
    scores = score(logits_of([[0.9, 0.1], [0.9, 0.1], [0.38, 0.62], [0.78, 0.22]]), truth)
    assert scores.pictures == 4
    assert scores.top1 == 0.75
    assert scores.confusion.tolist() == [[2, 0], [1, 1]]
    assert scores.per_class.tolist() == [1.0, 0.5]
    assert scores.nll == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.62) + math.log(0.78)) / 4, rel=1e-5)
    # Bins: two at 0.9, half right; one at 0.62, right; one at 0.78, right.
    assert scores.ece == pytest.approx((2 * 0.4 + 0.38 + 0.22) / 4, rel=1e-5)
    assert scores.bins[13].tolist() == pytest.approx([2, 0.9, 0.5])
    assert scores.bins[:, 0].sum() == 4


def test_a_sure_and_wrong_answer_has_a_finite_price() -> None:
    scores = score(np.array([[1000, 0]], np.float32), np.array([1]))
    assert (scores.top1, scores.nll, scores.ece) == (0, 1000, 1)


def test_a_class_without_pictures_has_no_accuracy() -> None:
    scores = score(logits_of([[0.7, 0.2, 0.1]]), np.array([0]))
    assert scores.per_class[0] == 1
    assert np.isnan(scores.per_class[1:]).all()


class Remembers:
    """An engine that answers with the mean colours, and keeps what it saw."""

    name, device, precision = "remembers", "cpu", "float32"

    def __init__(self) -> None:
        self.seen: list[NDArray[np.uint8]] = []

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen.append(pixels)
        means: NDArray[np.float32] = pixels.mean((1, 2)).astype(np.float32)
        return means


def test_pictures_are_measured_through_the_serving_transform_in_order() -> None:
    pixels = torch.randint(0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = InputSpec(resize=48, crop=40, interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = np.stack([transform(Image.fromarray(picture), spec) for picture in pixels.numpy()])
    truth = torch.from_numpy(expected.mean((1, 2)).argmax(1))
    truth[2] = (truth[2] + 1) % 3
    engine, progress = Remembers(), list[int]()
    scores = measure(engine, spec, Pictures(pixels, truth), batch_size=3, progress=progress.append)
    assert progress == [3, 3, 1]
    assert np.array_equal(np.concatenate(engine.seen), expected)
    assert scores.truth.tolist() == truth.tolist()
    assert scores.top1 == pytest.approx(6 / 7)
