"""The classifier as a library: load a bundle, preprocess images, classify them.

    classifier = model.load("weights/resnet18-cifar10")
    image = model.preprocess(data, classifier.card.input, max_pixels=50_000_000)
    prediction, = classifier.classify([image.pixels])
    prediction.top_k(3), prediction.verdict()
    if prediction.maps is not None:
        model.overlay(data, image, prediction.maps[:, 3], max_pixels=50_000_000)

`preprocess` decodes in this process. The service limits the memory and the time of decoding by child processes.

The public API is `__all__`. `app` uses nothing else.
"""

from model.bundle import CARD_FILE
from model.calibration import Verdict
from model.card import InputSpec, ModelCard, Reference, read_card
from model.classifier import Classifier, Passes, Prediction, Ranked, load
from model.decode import FORMATS
from model.engines.base import DeviceName, Engine, EngineName, Outputs
from model.errors import (
    BundleError,
    CardError,
    DataError,
    EngineError,
    ImageError,
    ImageTooLarge,
    IntegrityError,
    ModelError,
    NotExplainable,
    RecipeError,
    SaveError,
    TrainingError,
    UnreadableImage,
    UnsupportedImage,
)
from model.formats import EXTENSIONS, SMALL_PIXELS, is_small_and_plain
from model.heatmap import overlay, overlay_memory, png
from model.image import PreprocessedImage, decode_memory, preprocess
from model.views import FIRST_VIEWS, MAX_VIEWS, view_weights

__all__ = [
    "CARD_FILE",
    "EXTENSIONS",
    "FIRST_VIEWS",
    "FORMATS",
    "MAX_VIEWS",
    "SMALL_PIXELS",
    "BundleError",
    "CardError",
    "Classifier",
    "DataError",
    "DeviceName",
    "Engine",
    "EngineError",
    "EngineName",
    "ImageError",
    "ImageTooLarge",
    "InputSpec",
    "IntegrityError",
    "ModelCard",
    "ModelError",
    "NotExplainable",
    "Outputs",
    "Passes",
    "Prediction",
    "PreprocessedImage",
    "Ranked",
    "RecipeError",
    "Reference",
    "SaveError",
    "TrainingError",
    "UnreadableImage",
    "UnsupportedImage",
    "Verdict",
    "decode_memory",
    "is_small_and_plain",
    "load",
    "overlay",
    "overlay_memory",
    "png",
    "preprocess",
    "read_card",
    "view_weights",
]
