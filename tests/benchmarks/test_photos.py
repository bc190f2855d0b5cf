"""The metrics of the photo benchmark."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.photos.__main__ import measure
from benchmarks.photos.collection import Photo
from model import Prediction
from model.card import Thresholds

LIMITS = Thresholds(accepted=0.05, uncertain=0.02)


def prediction(probabilities: tuple[float, float], in_distribution: float) -> Prediction:
    values = np.array(probabilities, np.float32)
    return Prediction(("cat", "dog"), values, 10 * in_distribution, in_distribution, LIMITS, np.log(values)[None], None)


def test_known_values_of_the_metrics() -> None:
    predictions = [
        prediction((0.9, 0.1), 0.5),  # a cat, right
        prediction((0.8, 0.2), 0.04),  # a dog, wrong
        prediction((0.3, 0.7), 0.9),  # a cat, wrong
        prediction((0.4, 0.6), 0.01),  # a cat, wrong
        prediction((0.9, 0.1), 0.6),  # others
        prediction((0.9, 0.1), 0.0),
    ]
    found = measure(predictions, np.array([0, 1, 0, 0, -1, -1]))
    assert found == {
        "photos": 4,
        "others": 2,
        "top1": 0.25,
        "top1_by_class": pytest.approx((1 / 3 + 0) / 2),
        "top1_of_accepted": 0.5,
        "ece": pytest.approx((0.1 + 0.8 + 0.7 + 0.6) / 4, abs=1e-6),
        "auroc": pytest.approx(5 / 8),
        "accepted": 0.5,
        "uncertain": 0.25,
        "other": 0.25,
        "others_accepted": 0.5,
        "others_uncertain": 0.0,
        "others_other": 0.5,
    }


@pytest.mark.parametrize(("digit", "half"), [("0", "A"), ("1", "B"), ("a", "A"), ("f", "B")])
def test_the_half_of_a_photo_is_that_of_its_hash(digit: str, half: str) -> None:
    assert Photo(Path(f"photos/{digit}{63 * '0'}.jpg"), None, "food", "pypi:zoo==1").half == half
