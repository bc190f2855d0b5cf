"""Errors that `model` raises.

    ModelError
    ├── ImageError                  one image is invalid
    │   ├── UnsupportedImage        not an image in an accepted format
    │   ├── UnreadableImage         accepted format, but truncated or damaged
    │   └── ImageTooLarge           more pixels than the limit, or more memory to decode, by its header
    ├── BundleError                 a weights folder cannot be used
    │   ├── CardError               card.json is missing, invalid or has another format version
    │   └── IntegrityError          a hash or the self-test disagrees with the card
    ├── EngineError                 the requested runtime cannot run here
    ├── NotExplainable              neither the network nor the engine can say what speaks for a class
    └── TrainingError               a training or evaluation run cannot start or continue
        ├── DataError               the data set is missing or damaged
        ├── RecipeError             no such recipe or network, or the checkpoint is of another recipe
        └── SaveError               an output exists already, or cannot be written

Each message is one sentence that names the problem and what to do.
"""

import errno


class ModelError(Exception):
    """Base of all errors of this package."""


class ImageError(ModelError):
    """One image is invalid."""


class UnsupportedImage(ImageError):
    """The data is not an image in an accepted format."""


class UnreadableImage(ImageError):
    """The format is accepted, but the image is truncated or damaged."""


class ImageTooLarge(ImageError):
    """The image has more pixels than the limit, or takes more memory or time to decode, according to its header."""


class BundleError(ModelError):
    """A weights folder cannot be used."""


class CardError(BundleError):
    """card.json is missing, invalid or has another format version."""


class IntegrityError(BundleError):
    """The hash of a file or the self-test disagrees with the card."""


class EngineError(ModelError):
    """The requested runtime is not installed, has no device, or gives invalid outputs."""


class NotExplainable(ModelError):
    """The network has no class-activation maps, and the engine cannot compute Grad-CAM for it."""


class TrainingError(ModelError):
    """A training or evaluation run cannot start or continue."""


class DataError(TrainingError):
    """The data set is missing or damaged."""


class RecipeError(TrainingError):
    """There is no such recipe or network, or the checkpoint is of another recipe."""


class SaveError(TrainingError):
    """An output exists already, or cannot be written."""


def cannot_write(where: object, error: OSError, advice: str) -> str:
    """The message of a `SaveError` about a file or folder. Only for a full disk does it say to free disk space.

    Args:
        where: the file or folder.
        error: its reason.
        advice: what to do otherwise, such as "choose another --out".
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"cannot write {where} ({error.strerror or error}): {'free disk space or ' if full else ''}{advice}"
