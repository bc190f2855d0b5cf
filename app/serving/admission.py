"""Limits that all models share, on images, uploads and bytes of bodies; and deadlines."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from app.serving.errors import QueueFull, TooManyUploads

# The rate of completed images is measured over the last batches, at most 32 and at most 10 s old. Fewer than three
# say nothing, because one of them may have been delayed, for example by a stopped process.
_SAMPLES, _WINDOW, _LEAST_SAMPLES = 32, 10.0, 3
# Safety factor on the estimated wait. The more requests are refused, the slower the others become.
_SAFETY = 1.25


class CompletionRate:
    """Images completed per second while there was work, decoding included.

    Each batch gives one sample: its images, and the seconds since the batch before it or, if no image was admitted
    then, since its first image was admitted. The longest sample is left out, so that one interruption does not count.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int, float]] = deque(maxlen=_SAMPLES)
        self._last = -math.inf
        self._rate = 0.0

    def add(self, images: int, since: float) -> None:
        """Count the images of a batch that has just ended.

        Args:
            images: number of images in the batch.
            since: when the first of them was admitted, by the clock.
        """
        now = self._clock()
        self._drop_old(now)
        self._samples.append((now, images, now - max(self._last, since)))
        self._last = now
        if len(self._samples) < _LEAST_SAMPLES:
            self._rate = 0.0
            return
        longest = max(self._samples, key=lambda sample: sample[2])
        images = sum(sample[1] for sample in self._samples) - longest[1]
        seconds = sum(sample[2] for sample in self._samples) - longest[2]
        self._rate = max(images / max(seconds, 1e-6), 1.0)

    def per_second(self) -> float:
        """Images per second, at least 1; 0 if there is no recent measurement."""
        return self._rate if self._clock() - self._last < _WINDOW else 0.0

    def _drop_old(self, now: float) -> None:
        while self._samples and self._samples[0][0] < now - _WINDOW:
            self._samples.popleft()


class SharedLimit:
    """A limit on a sum over all models that leaves each of them a share.

    Half of the limit is divided into equal shares. A model that has used up its share takes from the other half, which
    is common to all. So each model always has its share, however many requests the others get, and the sum is never
    above the limit.

    Args:
        limit: of the sum over all models.
        models: their names.
    """

    def __init__(self, limit: int, models: Iterable[str]) -> None:
        names = tuple(models)
        self._used = dict.fromkeys(names, 0)
        self._shares = dict.fromkeys(names, limit // (2 * len(names)))
        self._common = limit - sum(self._shares.values())

    @property
    def used(self) -> Mapping[str, int]:
        """What each model uses."""
        return self._used

    def free(self, model: str) -> int:
        """How much more a model may use now. A name that is none of the models has no share."""
        borrowed = sum(max(0, used - self._shares.get(name, 0)) for name, used in self._used.items() if name != model)
        return self._shares.get(model, 0) + self._common - borrowed - self._used.get(model, 0)

    def add(self, model: str, count: int) -> None:
        """Count what a model uses in addition; a negative count when it is released. This checks no limit."""
        self._used[model] = self._used.get(model, 0) + count


class Limits:
    """The limits over all requests and models. They belong to the event loop's thread.

    Args:
        models: names of the models.
        max_images: images in progress, from before they are decoded until their response is built.
        max_uploads: requests whose body is being read.
        max_held_bytes: bytes of request bodies held in memory.
    """

    def __init__(self, models: Iterable[str], *, max_images: int, max_uploads: int, max_held_bytes: int) -> None:
        names = tuple(models)
        self.images = SharedLimit(max_images, names)
        self.uploads = SharedLimit(max_uploads, names)
        self._max_uploads = max_uploads
        self.held_bytes = SharedLimit(max_held_bytes, names)

    @property
    def uploads_are_scarce(self) -> bool:
        """Whether more than half of the room for uploads is used."""
        return 2 * sum(self.uploads.used.values()) > self._max_uploads

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


class Admission:
    """Counts what is in progress for one model, and refuses what goes beyond the limits.

    It belongs to the event loop's thread.

    Args:
        model: name of the model.
        limits: shared by all models.
        clock: returns the time in seconds. A simulation has one of its own.
    """

    def __init__(self, model: str, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._limits = limits
        self._clock = clock
        self._rate = CompletionRate(clock)

    @contextmanager
    def upload(self, *, deadline: float = math.inf, small: bool = False) -> Iterator[None]:
        """Hold room for a request while its body is read.

        Args:
            deadline: of the request, as time.monotonic().
            small: whether the body has arrived or has few bytes. It is counted, but needs no room.

        Raises:
            TooManyUploads: too many bodies are being read.
            QueueFull: not even one image could be admitted now, so the body need not be read.
        """
        self.check_images(1, deadline=deadline)
        uploads = self._limits.uploads
        if not small and uploads.free(self._model) < 1:
            raise TooManyUploads(
                f"{uploads.used[self._model]} uploads for {self._model} are in progress: "
                "send this one again in a second"
            )
        uploads.add(self._model, 1)
        try:
            yield
        finally:
            uploads.add(self._model, -1)

    @contextmanager
    def images(self, count: int, *, deadline: float = math.inf) -> Iterator[None]:
        """Hold room for `count` images, from before they are decoded until their response is built.

        Raises:
            QueueFull: see `check_images`.
        """
        self.check_images(count, deadline=deadline)
        self._limits.images.add(self._model, count)
        try:
            yield
        finally:
            self._limits.images.add(self._model, -count)

    def check_images(self, count: int, *, deadline: float = math.inf) -> None:
        """Check that `count` more images could be admitted and completed before the deadline.

        Args:
            count: number of images.
            deadline: of the request, as time.monotonic().

        Raises:
            QueueFull: they could not. Its `retry_after` follows from the measured rate.
        """
        rate = self._rate.per_second()
        used, free = self._limits.images.used[self._model], self._limits.images.free(self._model)
        if count > free:
            raise QueueFull(
                f"{used} images for {self._model} are in progress and the limit is {used + free}: "
                "send them again after the seconds in Retry-After",
                used / (rate or 1.0),
            )
        # Only where other images wait: a request that is alone is tried at any rate.
        if used and rate:
            seconds = _SAFETY * (used + count) / rate
            late = self._clock() + seconds - deadline
            if late > 0:
                raise QueueFull(
                    f"{used} images for {self._model} are in progress, which takes {seconds:.1f} s, longer than the "
                    "deadline of this request allows: send it again after the seconds in Retry-After",
                    late,
                )

    def completed(self, images: int, *, since: float) -> None:
        """Count the images of a batch that has just ended. See `CompletionRate.add`."""
        self._rate.add(images, since)
