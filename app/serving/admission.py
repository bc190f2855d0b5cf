"""Limits over all requests and models: images, uploads, bytes of bodies, and deadlines."""

import math
import time
from collections import deque
from collections.abc import Iterator
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
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, float]] = deque(maxlen=_SAMPLES)
        self._last = -math.inf
        self._rate = 0.0

    def add(self, images: int, since: float) -> None:
        """Count the images of a batch that has just ended.

        Args:
            images: number of images in the batch.
            since: when the first of them was admitted, as time.monotonic().
        """
        now = time.monotonic()
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
        return self._rate if time.monotonic() - self._last < _WINDOW else 0.0

    def _drop_old(self, now: float) -> None:
        while self._samples and self._samples[0][0] < now - _WINDOW:
            self._samples.popleft()


class Admission:
    """Counts what is in progress over all requests and models, and refuses what goes beyond the limits.

    It belongs to the event loop's thread.

    Args:
        max_images: images in progress, from before they are decoded until their response is built.
        max_uploads: requests whose body is being read.
        max_held_bytes: bytes of request bodies held in memory.
    """

    def __init__(self, *, max_images: int, max_uploads: int, max_held_bytes: int) -> None:
        self._max_images = max_images
        self._max_uploads = max_uploads
        self._max_held_bytes = max_held_bytes
        self._images = 0
        self._uploads = 0
        self._held_bytes = 0
        self._rate = CompletionRate()

    @property
    def images_in_progress(self) -> int:
        """Images admitted: being decoded, queued or in a batch."""
        return self._images

    @property
    def uploads_in_progress(self) -> int:
        """Requests whose body is being read."""
        return self._uploads

    @contextmanager
    def upload(self, *, deadline: float = math.inf) -> Iterator[None]:
        """Hold room for a request while its body is read.

        Args:
            deadline: of the request, as time.monotonic().

        Raises:
            TooManyUploads: too many bodies are being read.
            QueueFull: not even one image could be admitted now, so the body need not be read.
        """
        self.check_images(1, deadline=deadline)
        if self._uploads >= self._max_uploads:
            raise TooManyUploads(f"{self._uploads} uploads are in progress: send this one again in a second")
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    @contextmanager
    def images(self, count: int, *, deadline: float = math.inf) -> Iterator[None]:
        """Hold room for `count` images, from before they are decoded until their response is built.

        Raises:
            QueueFull: see `check_images`.
        """
        self.check_images(count, deadline=deadline)
        self._images += count
        try:
            yield
        finally:
            self._images -= count

    def check_images(self, count: int, *, deadline: float = math.inf) -> None:
        """Check that `count` more images could be admitted and completed before the deadline.

        Args:
            count: number of images.
            deadline: of the request, as time.monotonic().

        Raises:
            QueueFull: they could not. Its `retry_after` follows from the measured rate.
        """
        rate = self._rate.per_second()
        if self._images + count > self._max_images:
            raise QueueFull(
                f"{self._images} images are in progress and the limit is {self._max_images}: "
                "send them again after the seconds in Retry-After",
                self._images / (rate or 1.0),
            )
        # Only where other images wait: a request that is alone is tried at any rate.
        if self._images and rate:
            seconds = _SAFETY * (self._images + count) / rate
            late = time.monotonic() + seconds - deadline
            if late > 0:
                raise QueueFull(
                    f"{self._images} images are in progress, which takes {seconds:.1f} s, longer than the deadline of "
                    "this request allows: send it again after the seconds in Retry-After",
                    late,
                )

    def completed(self, images: int, *, since: float) -> None:
        """Count the images of a batch that has just ended. See `CompletionRate.add`."""
        self._rate.add(images, since)

    def hold_bytes(self, count: int) -> None:
        """Count bytes of a request body that are now in memory; a negative count when they are released.

        Raises:
            TooManyUploads: all bodies together have more bytes than the limit. The bytes are counted nevertheless.
        """
        self._held_bytes += count
        if count > 0 and self._held_bytes > self._max_held_bytes:
            raise TooManyUploads("the uploads in progress fill the memory for request bodies: send this one again")
