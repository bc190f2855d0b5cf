"""Classification in this process. Files are decoded in child processes while the engine runs in a thread."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

from pydantic import ValidationError

from app.cli.classify.paths import BadPath, FileContent, FileSizeError, check_size, describe_read_error, read_file
from app.cli.classify.pipeline import ordered_map, prefetch
from app.cli.classify.results import CommandError, Result
from app.http.schemas import image_result
from app.serving.decoding import BlockingDecoder
from app.settings import Settings, default_weights, error_messages, missing_weights
from model import (
    FIRST_VIEWS,
    Classifier,
    ImageError,
    InputSpec,
    ModelError,
    Prediction,
    PreprocessedImage,
    load,
)

# Files that a thread decodes at a time. Decoding one small file takes less time than waking a thread.
_FILES_PER_TASK = 16

Entry = tuple[str, PreprocessedImage | str]
"""Path of a file, and its image or an error."""


class LocalClassifier:
    """Classifies files with a model that is loaded here.

    Args:
        overrides: settings of the service that take precedence over the environment.
        top_k: number of classes per image.

    Raises:
        CommandError: a setting is wrong, the bundle or the engine cannot be loaded, or the model has fewer classes.
    """

    def __init__(self, overrides: Mapping[str, Any], top_k: int) -> None:
        try:
            several = {"models": ()} if "weights" in overrides else default_weights()
            settings = Settings(**{**several, **overrides})
        except ValidationError as error:
            raise CommandError(error_messages(error, overrides)[0]) from error
        if missing := missing_weights(settings):
            raise CommandError(missing)
        try:
            self._classifier: Classifier = load(
                settings.bundles[0], engine=settings.engine, device=settings.devices[0], threads=settings.threads
            )
        except ModelError as error:
            raise CommandError(str(error)) from error
        card = self._classifier.card
        if top_k > len(card.labels):
            raise CommandError(f"--top-k is {top_k}: choose 1 to {len(card.labels)}")
        self._settings = settings
        self._top_k = top_k
        self._model = {"name": card.name, "version": card.version}

    def classify(self, paths: Iterable[str | BadPath | FileContent]) -> Iterator[list[Result]]:
        """The results in the order of the paths.

        Raises:
            CommandError: the engine failed.
        """
        settings = self._settings
        decoder = BlockingDecoder(
            threads=settings.decoders, max_bytes=settings.max_decode_bytes, max_pixels=settings.max_pixels
        )
        read = partial(_read, spec=self._classifier.card.input, settings=settings, decoder=decoder)
        decoders = ThreadPoolExecutor(settings.decoders, "decode")
        engine = ThreadPoolExecutor(1, "engine")
        try:
            groups = prefetch(paths, batch_size=_FILES_PER_TASK, buffer_size=4 * _FILES_PER_TASK)
            decoded = ordered_map(decoders, read, groups, ahead=2 * settings.decoders)
            max_views = settings.max_batch or self._classifier.engine.preferred_batch
            batch_size = max(1, max_views // min(settings.views, FIRST_VIEWS))
            batches = prefetch(chain.from_iterable(decoded), batch_size=batch_size, buffer_size=2 * batch_size)
            yield from ordered_map(engine, self._classify_batch, batches, ahead=1)
        finally:
            for pool in (decoders, engine):
                pool.shutdown(wait=False, cancel_futures=True)
            decoder.stop()

    def _classify_batch(self, batch: Sequence[Entry]) -> list[Result]:
        images = [image for _, image in batch if isinstance(image, PreprocessedImage)]
        try:
            predictions = iter(self._classifier.classify([image.pixels for image in images]) if images else ())
        except ModelError as error:
            raise CommandError(str(error)) from error
        return [
            self._result(path, image, next(predictions))
            if isinstance(image, PreprocessedImage)
            else Result(path, {}, error=image)
            for path, image in batch
        ]

    def _result(self, path: str, image: PreprocessedImage, prediction: Prediction) -> Result:
        result = image_result(None, image, prediction, self._top_k, self._settings.min_confidence)
        return Result(path, result.model_dump(exclude={"filename"}), self._model)


def _read(
    paths: Sequence[str | BadPath | FileContent], spec: InputSpec, settings: Settings, decoder: BlockingDecoder
) -> list[Entry]:
    """Read, decode and preprocess files."""
    entries: list[Entry] = []
    for path in paths:
        if isinstance(path, BadPath):
            entries.append((path.path, path.reason))
            continue
        name = path.path if isinstance(path, FileContent) else path
        try:
            if isinstance(path, FileContent):
                data = path.data
                check_size(data, settings.max_body_bytes)
            else:
                data = read_file(path, settings.max_body_bytes)
            entries.append((name, decoder.preprocess(data, spec, settings.views)))
        except (OSError, ValueError, FileSizeError, ImageError) as error:
            entries.append((name, str(error) if isinstance(error, ImageError) else describe_read_error(error)))
    return entries
