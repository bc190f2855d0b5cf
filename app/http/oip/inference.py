"""From the body of a request to the images of a model, and from predictions to the body of the response."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from app.http.compression import accepted, deflate
from app.http.oip.interface import Inputs, ServedModel
from app.http.oip.messages import (
    HEADER_LENGTH,
    InferRequest,
    encode_response,
    json_memory,
    json_values,
    parse_request,
    split,
)
from app.http.problems import BodyTooLarge
from app.serving.decoding import Decoder, Flow
from app.serving.service import Service
from model import Prediction

# Bytes of memory of a job that runs in the event loop, because the way to a thread and back takes as long.
_INLINE = 500_000
# Values in the JSON of a request. The event loop stands still while CPython parses JSON in a thread: 60 ms for so many.
_MAX_VALUES = 300_000
# Smaller responses gain nothing from compression.
_MIN_COMPRESSED = 1_000
# Bytes of memory per number of a response, for the number, its text and copies of the text.
_PER_NUMBER = 100

_BINARY = "application/octet-stream"

T = TypeVar("T")


async def read_request(
    request: Request, body: bytes, served: ServedModel, service: Service
) -> tuple[InferRequest, Inputs]:
    """Parse a request, and extract its images.

    Args:
        request: for its headers.
        body: of the request.
        served: the model that it is for.
        service: with the limit on memory, and the threads for large requests.

    Raises:
        InvalidInference: it is malformed, or its tensors are not those of the model.
        BodyTooLarge: its JSON takes too much memory or time.
        TooManyFiles: there are too many images.
    """
    header_length = request.headers.get(HEADER_LENGTH)
    text, binary = split(body, header_length)
    if header_length is not None and not text:
        return served.read_raw(binary)
    memory = json_memory(text)
    if memory > service.settings.max_decode_bytes or json_values(text) > _MAX_VALUES:
        raise BodyTooLarge("the JSON of the request is too large: send tensors as binary data, or fewer images")

    def job() -> tuple[InferRequest, Inputs]:
        parsed = parse_request(text, binary)
        return parsed, served.read(parsed)

    return await _run(job, service.decoder, served.model.name, size=memory + 2 * len(binary))


async def build_response(
    request: Request, parsed: InferRequest, served: ServedModel, service: Service, predictions: Sequence[Prediction]
) -> Response:
    """The response with the requested outputs.

    Args:
        request: for its headers and its ID.
        parsed: its body.
        served: the model.
        service: with the threads for large responses.
        predictions: one per image.
    """
    encoding = accepted(request.headers.get("accept-encoding", ""))

    def job() -> Response:
        body, length = encode_response(
            model=served.name,
            version=served.version,
            request_id=parsed.id or request.state.request_id,
            outputs=served.respond(parsed, predictions),
        )
        headers = {} if length is None else {HEADER_LENGTH: str(length)}
        if encoding and len(body) >= _MIN_COMPRESSED:
            body = deflate(body, encoding)
            headers["Content-Encoding"] = encoding
        return Response(body, headers=headers, media_type="application/json" if length is None else _BINARY)

    numbers = len(predictions) * sum(output.dims[0] for output in served.outputs)
    return await _run(job, service.decoder, served.model.name, size=numbers * _PER_NUMBER)


async def _run(job: Callable[[], T], decoder: Decoder, model: str, *, size: int) -> T:
    """Run a job of so many bytes in the event loop if it is small, and else in a thread."""
    return job() if size <= _INLINE else await decoder.run(job, size=size, flow=Flow(model))
