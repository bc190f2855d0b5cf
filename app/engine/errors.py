"""Errors of the engine and of the limits. app/http/problems.py maps each to a response.

ServingError
├── UnknownModel        no model has the name that the request gives
├── QueueFull           no room for more images, or none before the request's deadline
├── TooManyUploads      no room for another request body
├── NotReady            a model is loading or failed to load, or the service is draining
├── NotAlive            an engine does not work any more
├── SwapRefused         new weights cannot be served, or differ too much from those that are served
├── SwapConflict        another swap is in progress, or there is no previous version
└── SwapInterrupted     the service shuts down during a swap, or one of its processes ended
"""


class ServingError(Exception):
    """Base class. The message says what the client should do.

    Attributes:
        retry_after: seconds after which a retry makes sense; None if it makes none.
    """

    retry_after: float | None = None


class UnknownModel(ServingError):
    """No model has this name."""


class QueueFull(ServingError):
    """There is no room for more images, or they could not be completed before their deadline."""

    retry_after: float

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyUploads(ServingError):
    """There is no room for another request body."""

    retry_after = 1.0


class NotReady(ServingError):
    """A model is loading or failed to load, or the service is draining."""

    retry_after = 1.0


class NotAlive(ServingError):
    """An engine does not work any more."""

    retry_after = 5.0


class SwapRefused(ServingError):
    """New weights cannot be served, or differ too much from those that are served."""


class SwapConflict(ServingError):
    """Another swap is in progress, or there is no previous version."""


class SwapInterrupted(ServingError):
    """The service shuts down during a swap, or one of its processes ended."""

    retry_after = 5.0
