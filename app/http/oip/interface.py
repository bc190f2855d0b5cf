"""The two models that each bundle is served as: NAME takes pixels, and NAME-image takes encoded images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.engine.api import Batched, Catalog, Lease, ModelInfo, Source
from app.engine.errors import UnknownModel
from app.http.oip import tensors
from app.http.oip.messages import InferRequest, OutputTensor, RequestedOutput, Tensor, raw_request
from app.http.oip.schemas import (
    ConfigParameter,
    DynamicBatching,
    InputConfig,
    ModelConfig,
    ModelMetadata,
    OutputConfig,
    TensorMetadata,
)
from app.http.problems import InvalidInference, TooManyFiles
from app.serving.decoding import Decoder
from app.serving.images import ClassifiedImage, Upload, classify
from model import ImageError, Prediction

IMAGE_SUFFIX = "-image"
"""Of the names of models that take encoded images."""

Inputs = NDArray[np.uint8] | list[bytes]
"""The images of a request: uint8[N, S, S, 3], or N encoded ones."""


class TensorSpec(NamedTuple):
    """An input or output.

    Attributes:
        name: of the tensor.
        datatype: of the protocol.
        dims: the shape without the batch.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def metadata(self) -> TensorMetadata:
        """Its description in the metadata of a model."""
        return TensorMetadata(name=self.name, datatype=self.datatype, shape=[-1, *self.dims])

    @property
    def data_type(self) -> str:
        """Triton's name of its data type in a model configuration."""
        return "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the protocol.

    Attributes:
        name: of the protocol.
        model: that runs it.
        takes_images: whether its input is encoded images.
        max_batch: largest number of images in a request.
    """

    name: str
    model: ModelInfo
    takes_images: bool
    max_batch: int

    @property
    def version(self) -> str:
        """The version of the card as a decimal number, because clients of Triton parse versions as integers."""
        return str(int(self.model.card.version, 16))

    @property
    def platform(self) -> str:
        """The runtime."""
        return f"tenfold_{self.model.engine}"

    @property
    def input(self) -> TensorSpec:
        """The only input."""
        side = self.model.card.input.crop
        return (
            TensorSpec("image", "BYTES", (1,)) if self.takes_images else TensorSpec("pixels", "UINT8", (side, side, 3))
        )

    @property
    def outputs(self) -> list[TensorSpec]:
        """All outputs, in order."""
        classes = (len(self.model.card.labels),)
        scores = [TensorSpec("logits", "FP32", classes), TensorSpec("probabilities", "FP32", classes)]
        return [*scores, TensorSpec("label", "BYTES", (1,))] if self.takes_images else scores

    @property
    def metadata(self) -> ModelMetadata:
        """The response to a request for metadata."""
        return ModelMetadata(
            name=self.name,
            versions=[self.version],
            platform=self.platform,
            inputs=[self.input.metadata],
            outputs=[output.metadata for output in self.outputs],
        )

    @property
    def config(self) -> ModelConfig:
        """The response to a request for the configuration."""
        layout = "FORMAT_NONE" if self.takes_images else "FORMAT_NHWC"
        given = self.input
        return ModelConfig(
            name=self.name,
            platform=self.platform,
            max_batch_size=self.max_batch,
            input=[InputConfig(name=given.name, data_type=given.data_type, format=layout, dims=list(given.dims))],
            output=[
                OutputConfig(name=output.name, data_type=output.data_type, dims=list(output.dims))
                for output in self.outputs
            ],
            dynamic_batching=DynamicBatching(
                preferred_batch_size=[self.model.preferred_batch], max_queue_delay_microseconds=0
            ),
            parameters={"version": ConfigParameter(string_value=self.model.card.version)},
        )

    def read(self, request: InferRequest) -> Inputs:
        """The images of a request whose outputs are valid.

        Pixels of type FP32 are rounded to integers.

        Raises:
            InvalidInference: the input is not that of the model, or an output is unknown.
            TooManyFiles: there are more images than `max_batch`.
        """
        specs = {output.name: output for output in self.outputs}
        for output in request.outputs:
            if output.name not in specs:
                raise InvalidInference(f"{self.name} has no output {output.name!r}: choose from {', '.join(specs)}")
            if output.classes and specs[output.name].datatype == "BYTES":
                raise InvalidInference(f"{output.name} has no classification: request that of probabilities")
        given = request.input
        self._check(given)
        if self.takes_images:
            if isinstance(given.data, memoryview):
                return tensors.elements_from_bytes(given.data, given.shape[0])
            return tensors.elements_from_json(given.data, given.shape)
        return _pixels(given)

    def read_raw(self, data: memoryview) -> tuple[InferRequest, Inputs]:
        """The request and the image of a raw binary request: an encoded image as it is, or the pixels of one.

        Raises:
            InvalidInference: there are more or fewer pixels than those of one image.
        """
        spec = self.input
        request = raw_request(spec.name, spec.datatype, [1, *spec.dims], data)
        return request, [bytes(data)] if self.takes_images else self.read(request)

    def respond(self, request: InferRequest, predictions: Sequence[Prediction]) -> list[OutputTensor]:
        """The requested outputs, or all.

        The logits of an image with several views are their weighted mean. A classification has at most as many
        elements as there are classes.
        """
        requested = request.outputs or [RequestedOutput(output.name, request.binary, 0) for output in self.outputs]
        return [self._output(output, predictions) for output in requested]

    def _check(self, given: Tensor) -> None:
        spec = self.input
        if given.name != spec.name:
            raise InvalidInference(f"{self.name} has no input {given.name!r}: name it {spec.name}")
        datatypes = ("BYTES",) if self.takes_images else tuple(tensors.DTYPES)
        if given.datatype not in datatypes:
            raise InvalidInference(f"{spec.name} is of type {given.datatype!r}: send {' or '.join(datatypes)}")
        if len(given.shape) != 1 + len(spec.dims) or tuple(given.shape[1:]) != spec.dims or given.shape[0] < 1:
            expected = ", ".join(map(str, ("N", *spec.dims)))
            raise InvalidInference(f"{spec.name} has another shape: send [{expected}], N from 1 to {self.max_batch}")
        if given.shape[0] > self.max_batch:
            raise TooManyFiles(f"more than {self.max_batch} images in one request: send them in several requests")

    def _output(self, output: RequestedOutput, predictions: Sequence[Prediction]) -> OutputTensor:
        count = len(predictions)
        if output.name == "label":
            labels = [prediction.top_k(1)[0].label for prediction in predictions]
            return OutputTensor(output.name, labels, (count, 1), output.binary)
        values = np.stack(
            [
                prediction.probabilities if output.name == "probabilities" else prediction.mean_logits
                for prediction in predictions
            ]
        )
        if not output.classes:
            return OutputTensor(output.name, values, values.shape, output.binary)
        labels = self.model.card.labels
        best = np.argsort(-values, axis=1, kind="stable")[:, : output.classes]
        ranked = [
            f"{row[index]:.6f}:{index}:{labels[index]}"  # the format of Triton
            for row, order in zip(values.tolist(), best.tolist(), strict=True)
            for index in order
        ]
        return OutputTensor(output.name, ranked, best.shape, output.binary)


async def classify_inputs(
    inputs: Inputs, lease: Lease, decoder: Decoder, views: int, sources: Sequence[Source]
) -> Sequence[ClassifiedImage | Batched | ImageError]:
    """Classify the images of a request. See `app.serving.images.classify` and `Lease.classify`."""
    if isinstance(inputs, list):
        return await classify([Upload(None, data) for data in inputs], lease, decoder, views, sources=sources)
    return await lease.classify(list(inputs[:, None]), sources)


def names_of(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """The names of the protocol, each with the name of the bundle that it is served from."""
    for bundle in catalog.names:
        yield bundle, bundle
        if f"{bundle}{IMAGE_SUFFIX}" not in catalog.names:
            yield f"{bundle}{IMAGE_SUFFIX}", bundle


def find(catalog: Catalog, name: str, version: str | None, *, max_batch: int) -> ServedModel:
    """The model with this name of the protocol.

    Args:
        catalog: the bundles.
        name: of the protocol.
        version: that is wanted, of the protocol or of the card; None for any.
        max_batch: largest number of images in a request.

    Raises:
        UnknownModel: there is none with this name and version.
        NotReady: it is not loaded.
        NotAlive: its engine does not work any more.
    """
    known = name in catalog.names
    bundle = name if known else name.removesuffix(IMAGE_SUFFIX)
    if bundle not in catalog.names:
        raise UnknownModel(f"there is no model {name!r}: choose one of {', '.join(dict(names_of(catalog)))}")
    served = ServedModel(name, catalog.get(bundle), not known, max_batch)
    if version not in (None, served.version, served.model.card.version):
        raise UnknownModel(f"{name} has no version {version!r}: choose {served.version}, or name none")
    return served


def _pixels(given: Tensor) -> NDArray[np.uint8]:
    if isinstance(given.data, memoryview):
        array = tensors.array_from_bytes(given.data, given.datatype, given.shape)
    else:
        array = tensors.array_from_json(given.data, given.datatype, given.shape)
    if given.datatype == "UINT8":
        return array.astype(np.uint8, copy=False)
    if not (array.min() >= 0 and array.max() <= 255):  # false if one is not a number
        raise InvalidInference("a pixel is not within 0 to 255: send the values before any normalisation")
    return np.rint(array).astype(np.uint8)
