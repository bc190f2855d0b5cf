"""Every error that `model` raises on purpose.

    ModelError
    ├── ImageError                  one picture is at fault, never the service
    │   ├── UnsupportedImage        not a picture format that is accepted
    │   ├── UnreadableImage         accepted format, but truncated or damaged
    │   └── ImageTooLarge           more pixels than the limit, by its header
    ├── BundleError                 a weights/ folder cannot be used
    │   ├── CardError               card.json is missing, malformed or of another version
    │   └── IntegrityError          a file's hash or the self-test disagrees with the card
    ├── EngineError                 the runtime asked for cannot run here
    └── TrainingError               a training or evaluation run cannot start or go on
        ├── DataError               no data, or the archive is damaged
        ├── RecipeError             no such recipe or network, or a resume under another one
        └── SaveError               an output exists already, or could not be written

The message of each is one sentence that says what to do.
"""


class ModelError(Exception):
    """Base of all errors of this package."""


class ImageError(ModelError):
    """One picture is at fault."""


class UnsupportedImage(ImageError):
    """The bytes are not of a picture format that is accepted."""


class UnreadableImage(ImageError):
    """The format is accepted, but the picture is truncated or damaged."""


class ImageTooLarge(ImageError):
    """The header announces more pixels than the limit."""


class BundleError(ModelError):
    """A weights folder cannot be used."""


class CardError(BundleError):
    """card.json is missing, malformed or of another format version."""


class IntegrityError(BundleError):
    """A file's hash or the self-test disagrees with the card."""


class EngineError(ModelError):
    """The runtime asked for is not installed or has no device."""


class TrainingError(ModelError):
    """A training or evaluation run cannot start or go on."""


class DataError(TrainingError):
    """The data set is missing or damaged."""


class RecipeError(TrainingError):
    """No such recipe or network, or a resume under another recipe."""


class SaveError(TrainingError):
    """An output exists already, or could not be written."""
