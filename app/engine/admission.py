"""Limits on a sum over all models, and the images in progress, with the deadlines of their requests."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from app.engine.errors import QueueFull

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
        self._borrowed = 0  # beyond the shares, by all models

    @property
    def used(self) -> Mapping[str, int]:
        """What each model uses."""
        return self._used

    def free(self, model: str) -> int:
        """How much more a model may use now. A name that is none of the models has no share."""
        used, share = self._used.get(model, 0), self._shares.get(model, 0)
        return share + self._common - (self._borrowed - max(0, used - share)) - used

    def add(self, model: str, count: int) -> None:
        """Count what a model uses in addition; a negative count when it is released. This checks no limit."""
        before, share = self._used.get(model, 0), self._shares.get(model, 0)
        self._used[model] = before + count
        self._borrowed += max(0, before + count - share) - max(0, before - share)


class Load(NamedTuple):
    """The images in progress for one model.

    Attributes:
        used: images in progress.
        free: how many more may be admitted.
        rate: images completed per second; 0 if there is no recent measurement.
        first_rate: images per second of the engine alone, measured when the model was loaded.
    """

    used: int
    free: int
    rate: float
    first_rate: float

    def check(self, model: str, count: int, seconds_left: float) -> None:
        """Check that `count` more images could be admitted and completed in time.

        Args:
            model: its name.
            count: number of images.
            seconds_left: until the deadline of the request.

        Raises:
            QueueFull: they could not. Its `retry_after` follows from the measured rate.
        """
        if count > self.free:
            raise QueueFull(
                f"{self.used} images for {model} are in progress and the limit is {self.used + self.free}: "
                "send them again after the seconds in Retry-After",
                self.used / (self.rate or self.first_rate),
            )
        # Only where other images wait: a request that is alone is tried at any rate.
        if self.used and self.rate:
            seconds = _SAFETY * (self.used + count) / self.rate
            if seconds > seconds_left:
                raise QueueFull(
                    f"{self.used} images for {model} are in progress, which takes {seconds:.1f} s, longer than the "
                    "deadline of this request allows: send it again after the seconds in Retry-After",
                    seconds - seconds_left,
                )


class Admission:
    """Counts the images in progress for one model, and refuses those beyond the limit.

    Args:
        model: name of the model.
        images: the limit that all models share.
        clock: returns the time in seconds. A simulation has one of its own.

    Attributes:
        first_rate: see `Load`.
    """

    def __init__(self, model: str, images: SharedLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self.first_rate = 1.0
        self._model = model
        self._images = images
        self._clock = clock
        self._rate = CompletionRate(clock)

    @property
    def load(self) -> Load:
        """The images in progress now."""
        free = self._images.free(self._model)
        return Load(self._images.used[self._model], free, self._rate.per_second(), self.first_rate)

    def check(self, count: int, *, deadline: float = math.inf) -> None:
        """See `Load.check`. The deadline is that of the request, by the clock."""
        self.load.check(self._model, count, deadline - self._clock())

    def admit(self, count: int, *, deadline: float = math.inf) -> None:
        """Hold room for `count` images until `release`.

        Raises:
            QueueFull: there is none.
        """
        self.check(count, deadline=deadline)
        self._images.add(self._model, count)

    def release(self, count: int) -> None:
        """Release the room of `count` images."""
        self._images.add(self._model, -count)

    def completed(self, images: int, *, since: float) -> None:
        """Count the images of a batch that has just ended. See `CompletionRate.add`."""
        self._rate.add(images, since)
