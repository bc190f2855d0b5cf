"""New weights see copies of live images, and their predictions are compared with those that were sent."""

import asyncio
import logging
from collections import deque
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.engine.models import LoadedModel
from app.engine.status import Comparison
from app.telemetry.metrics import Telemetry
from model import Classifier, Prediction

logger = logging.getLogger("tenfold")

# Copies that wait for the new weights. A copy beyond them is dropped.
_QUEUE = 32


class Shadow:
    """Compares new weights with those that are served, on a share of the live images.

    A copy is taken after the answer was computed. The new weights classify one copy at a time in their own thread, so a
    request waits for none of them. It belongs to the event loop's thread.

    Args:
        serving: the model that gets the requests.
        candidate: the new one, with the same test transform.
        share: of the images that are copied, 0..1.
        min_confidence: lowest probability of an accepted result.
        telemetry: counts the comparisons.

    Attributes:
        comparison: the sums so far.
    """

    def __init__(
        self, serving: LoadedModel, candidate: LoadedModel, *, share: float, min_confidence: float, telemetry: Telemetry
    ) -> None:
        self.comparison = Comparison()
        self._serving = serving
        self._candidate = candidate
        self._share = share
        self._min_confidence = min_confidence
        self._telemetry = telemetry
        self._random = np.random.default_rng()
        self._queue: deque[tuple[NDArray[np.uint8], Prediction]] = deque()
        self._not_empty = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="shadow")
        serving.batcher.observers.append(self._offer)

    def stop(self) -> None:
        """Copy no more images."""
        self._serving.batcher.observers.remove(self._offer)
        self._task.cancel()

    def _offer(self, pixels: NDArray[np.uint8], prediction: Prediction) -> None:
        """Copy an image or not. Called after its result was set."""
        if self._random.random() >= self._share:
            return
        if len(self._queue) >= _QUEUE:
            self.comparison += Comparison(dropped=1)
            self._telemetry.shadow_image(self._serving.name, "dropped")
            return
        self._queue.append((pixels.copy(), prediction))  # they are a part of the array of a whole request
        self._not_empty.set()

    async def _run(self) -> None:
        while True:
            await self._not_empty.wait()
            pixels, expected = self._queue.popleft()
            if not self._queue:
                self._not_empty.clear()
            try:
                (found,) = await self._candidate.batcher.in_engine_thread(partial(_classify, pixels))
            except Exception:
                if not self.comparison.failed:
                    logger.exception("the new weights of %s cannot classify an image", self._serving.name)
                self.comparison += Comparison(images=1, failed=1)
                self._telemetry.shadow_image(self._serving.name, "failed")
            else:
                self._compare(expected, found)

    def _compare(self, expected: Prediction, found: Prediction) -> None:
        first = [prediction.top_k(1)[0] for prediction in (expected, found)]
        accepted = [prediction.accepted(self._min_confidence) for prediction in (expected, found)]
        agreed = first[0].index == first[1].index
        self.comparison += Comparison(
            images=1,
            agreed=int(agreed),
            confidence=(first[0].probability, first[1].probability),
            accepted=(int(accepted[0]), int(accepted[1])),
        )
        self._telemetry.shadow_image(self._serving.name, "agreed" if agreed else "disagreed")
        for weights, ranked, is_accepted in zip(("serving", "candidate"), first, accepted, strict=True):
            self._telemetry.shadow_prediction(self._serving.name, weights, ranked.probability, is_accepted)


def _classify(pixels: NDArray[np.uint8], classifier: Classifier) -> list[Prediction]:
    return classifier.classify([pixels])
