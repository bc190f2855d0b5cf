"""The limits of a process on request bodies: uploads in progress and bytes in memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from app.engine.admission import SharedLimit
from app.engine.errors import TooManyUploads


class Limits:
    """The limits over all requests and models. They belong to the event loop's thread.

    Args:
        models: names of the models.
        max_uploads: requests whose body is being read.
        max_held_bytes: bytes of request bodies held in memory.
    """

    def __init__(self, models: Iterable[str], *, max_uploads: int, max_held_bytes: int) -> None:
        names = tuple(models)
        self.uploads = SharedLimit(max_uploads, names)
        self._max_uploads = max_uploads
        self.held_bytes = SharedLimit(max_held_bytes, names)

    @property
    def uploads_are_scarce(self) -> bool:
        """Whether more than half of the room for uploads is used."""
        return 2 * sum(self.uploads.used.values()) > self._max_uploads

    @contextmanager
    def upload(self, model: str, *, small: bool = False) -> Iterator[None]:
        """Hold room for a request while its body is read.

        Args:
            model: name of the model that the request is for.
            small: whether the body has arrived or has few bytes. It is counted, but needs no room.

        Raises:
            TooManyUploads: too many bodies are being read.
        """
        if not small and self.uploads.free(model) < 1:
            raise TooManyUploads(
                f"{self.uploads.used[model]} uploads for {model} are in progress: send this one again in a second"
            )
        self.uploads.add(model, 1)
        try:
            yield
        finally:
            self.uploads.add(model, -1)

    def hold_bytes(self, model: str, count: int) -> None:
        """Count bytes of a request body that are now in memory.

        Args:
            model: name of the model that the request is for; empty if it is for none.
            count: number of bytes; negative when they are released.

        Raises:
            TooManyUploads: there is no room for so many. The bytes are counted nevertheless.
        """
        self.held_bytes.add(model, count)
        if count > 0 and self.held_bytes.free(model) < 0:
            raise TooManyUploads("the uploads in progress fill the memory for request bodies: send this one again")
