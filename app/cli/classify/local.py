"""Classifying files in this process: decoded in threads, beside the engine's."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

from pydantic import ValidationError

from app.cli.classify.paths import Lost, UnfitFile, read_file, reason_of
from app.cli.classify.pipeline import gathered, in_order
from app.cli.classify.results import Result, Unusable
from app.http.schemas import image_result
from app.settings import Settings, default_weights, error_messages
from model import Classifier, ImageError, InputSpec, ModelError, Prediction, PreprocessedImage, load, preprocess

# Files read and decoded by a thread at a time: a small one is done sooner than a thread wakes.
_DECODED = 16

Prepared = tuple[str, PreprocessedImage | str]


class Local:
    """A classifier of our own.

    Args:
        given: settings of the service's that differ from the environment's.
        top_k: classes to tell of each picture.

    Raises:
        Unusable: a setting is wrong, there is no such bundle or engine, or it has fewer classes.
    """

    def __init__(self, given: dict[str, Any], top_k: int) -> None:
        try:
            settings = Settings(**({"weights": default_weights()} | given))
        except ValidationError as error:
            raise Unusable(error_messages(error)[0]) from error
        try:
            self._classifier: Classifier = load(
                settings.weights, engine=settings.engine, device=settings.device, threads=settings.threads
            )
        except ModelError as error:
            raise Unusable(str(error)) from error
        card = self._classifier.card
        if top_k > len(card.labels):
            raise Unusable(f"--top-k is {top_k}: choose 1 to {len(card.labels)}")
        self._settings = settings
        self._top_k = top_k
        self._model = {"name": card.name, "version": card.version}

    def results(self, paths: Iterable[str | Lost]) -> Iterator[list[Result]]:
        """The results, in the order of the paths.

        Raises:
            Unusable: the engine failed.
        """
        settings = self._settings
        read = partial(_read, spec=self._classifier.card.input, settings=settings)
        decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        engine = ThreadPoolExecutor(1, "engine")
        try:
            groups = gathered(paths, most=_DECODED, room=4 * _DECODED)
            decoded = in_order(decoders, read, groups, ahead=2 * settings.decode_threads)
            most = max(1, settings.max_batch // settings.views)
            batches = gathered(chain.from_iterable(decoded), most=most, room=2 * most)
            yield from in_order(engine, self._classified, batches, ahead=1)
        finally:
            for pool in (decoders, engine):
                pool.shutdown(wait=False, cancel_futures=True)

    def _classified(self, batch: Sequence[Prepared]) -> list[Result]:
        pictures = [picture for _, picture in batch if isinstance(picture, PreprocessedImage)]
        try:
            predictions = iter(self._classifier.classify([each.pixels for each in pictures]) if pictures else ())
        except ModelError as error:
            raise Unusable(str(error)) from error
        return [
            self._answered(path, picture, next(predictions))
            if isinstance(picture, PreprocessedImage)
            else Result(path, {}, error=picture)
            for path, picture in batch
        ]

    def _answered(self, path: str, picture: PreprocessedImage, prediction: Prediction) -> Result:
        answer = image_result(None, picture, prediction, self._top_k, self._settings.min_confidence)
        return Result(path, answer.model_dump(exclude={"filename"}), self._model)


def _read(paths: Sequence[str | Lost], spec: InputSpec, settings: Settings) -> list[Prepared]:
    """Images ready for the engine; in the place of one that is not, why."""
    out: list[Prepared] = []
    for path in paths:
        if isinstance(path, Lost):
            out.append((path.path, path.reason))
            continue
        try:
            data = read_file(path, settings.max_body_bytes)
            out.append((path, preprocess(data, spec, max_pixels=settings.max_pixels, views=settings.views)))
        except (OSError, ValueError, UnfitFile, ImageError) as error:
            out.append((path, str(error) if isinstance(error, ImageError) else reason_of(error)))
    return out
