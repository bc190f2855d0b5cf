"""Pixels and predictions of fixed inputs. If they change, so must `REVISION`, and with it every version."""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.card import REVISION, Calibration, InputSpec, Mixture
from model.classifier import Classifier
from model.engines.base import Outputs
from model.image import preprocess
from model.views import MAX_VIEWS
from tests.app.fakes import CARD

# After a change, raise REVISION in model/card.py, and put it and the new values here.
PIXELS = 1, "1d451110a9e970c94bc3e309424bf62c63877c8e330ae939deae9ea9a1603c5a"
PREDICTIONS = (
    1,
    [  # of each image: views, three highest probabilities, score, in_distribution, verdict
        (1, 0.895, 0.0871, 0.0101, 5.859, 0.709, "accepted"),
        (2, 0.36, 0.3436, 0.2536, 5.984, 0.785, "accepted"),
        (3, 0.9017, 0.0795, 0.0089, 5.6153, 0.3263, "accepted"),
        (4, 0.3188, 0.2084, 0.1694, 5.6458, 0.4791, "accepted"),
        (5, 0.3437, 0.1988, 0.1344, 5.6613, 0.5113, "accepted"),
    ],
)


def drawn(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """A smooth image with a fine pattern, by integer arithmetic."""
    y, x, c = np.mgrid[:height, :width, :channels]
    pixels: NDArray[np.uint8] = ((x * (c + 2) + y * 3 + (x // 5 + y // 7) % 2 * 90 + x * y // 50) % 256).astype(
        np.uint8
    )
    return pixels


def files() -> list[bytes]:
    """Small and large images in every mode of PNG, and a JPEG that is decoded at a smaller scale."""
    shapes = [(32, 32), (8, 8), (33, 57), (64, 64), (200, 150), (150, 400), (1200, 40), (900, 700)]
    images = [Image.fromarray(drawn(*shape)) for shape in shapes]
    small = Image.fromarray(drawn(100, 80, 4), "RGBA")
    images += [small, *(small.convert(mode) for mode in ("L", "LA", "1", "P"))]
    images.append(Image.fromarray(drawn(70, 90)[..., 0].astype(np.uint16) * 257))
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation
    encoded = []
    for image in images:
        for exif in (Image.Exif(), turned):
            file = io.BytesIO()
            image.save(file, "PNG", exif=exif)
            encoded.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(drawn(1500, 1100)).save(file, "JPEG", quality=95)
    return [*encoded, file.getvalue()]


def test_the_pixels_of_fixed_images_change_only_with_the_revision() -> None:
    digest = hashlib.sha256()
    plain = {"crop": 32, "mean": (0, 0, 0), "std": (1, 1, 1)}
    for other in ({"resize": 32, "interpolation": "bilinear"}, {"resize": 36, "interpolation": "bicubic"}):
        spec = InputSpec.model_validate(plain | other)
        for data in files():
            pixels = preprocess(data, spec, max_pixels=10_000_000, views=MAX_VIEWS).pixels
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
    assert (REVISION, digest.hexdigest()) == PIXELS


class FixedEngine:
    """Logits and features that follow from the pixels by sums of integers."""

    name, device, precision, preferred_batch = "openvino", "cpu", "float32", 32

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        values = pixels.reshape(len(pixels), -1).astype(np.int64)
        logits = np.stack([values[:, index::10].sum(axis=1) % 100 / 10 for index in range(10)], axis=1)
        features = np.stack([values[:, index::12].sum(axis=1) % 97 for index in range(12)], axis=1)
        return Outputs(logits.astype(np.float32), features.astype(np.float32), None)


def test_the_predictions_for_fixed_outputs_change_only_with_the_revision() -> None:
    score = Mixture.model_validate(
        {**CARD.out_of_distribution.score.model_dump(), "method": "mixture", "energy_weight": 0.5, "cosine_weight": 2.0}
    )
    card = CARD.model_copy(
        update={
            "calibration": Calibration(temperature=0.25, exponent=0.5, views=1, pictures=1),
            "out_of_distribution": CARD.out_of_distribution.model_copy(
                update={"score": score, "quantiles": [5.5, 5.6, 5.65, 5.9, 6.5]}
            ),
        }
    )
    views = np.stack([drawn(32 + index, 32)[:, index:] for index in range(20)])
    images = [views[:count] if count != 3 else views[-3:] for count in (1, 2, 3, 4, 5)]
    found = [
        (
            prediction.views,
            *(round(ranked.probability, 4) for ranked in prediction.top_k(3)),
            round(prediction.score, 4),
            round(prediction.in_distribution, 4),
            prediction.verdict(),
        )
        for prediction in Classifier(card, FixedEngine()).classify(images)
    ]
    assert (REVISION, found) == PREDICTIONS
