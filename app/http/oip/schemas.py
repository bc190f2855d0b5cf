"""The JSON of the Open Inference Protocol, with Triton's extensions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_PARAMETERS = {"type": "object", "description": "Values by name. Unknown names are ignored."}

INDEX_REQUEST: dict[str, Any] = {
    "type": "object",
    "properties": {"ready": {"type": "boolean", "default": False, "description": "List only models that are ready."}},
}
"""OpenAPI schema of a request for the index."""

INFERENCE_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Returned in the response. The default is the request ID."},
        "parameters": {**_PARAMETERS, "properties": {"binary_data_output": {"type": "boolean"}}},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"type": "string", "description": "UINT8, FP32 or BYTES."},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "parameters": {**_PARAMETERS, "properties": {"binary_data_size": {"type": "integer"}}},
                    "data": {"type": "array", "items": {}, "description": "Flat or nested. Not with binary data."},
                },
            },
        },
        "outputs": {
            "type": "array",
            "description": "The default is all outputs.",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {
                        **_PARAMETERS,
                        "properties": {
                            "binary_data": {"type": "boolean"},
                            "classification": {"type": "integer", "minimum": 0},
                        },
                    },
                },
            },
        },
    },
}
"""OpenAPI schema of a request for inference."""

Shape = Annotated[list[int], Field(description="Size of each dimension; -1 is the batch.")]


class InferenceError(BaseModel):
    """An error under /v2."""

    error: Annotated[str, Field(description="What happened, and what to do.")]


class ServerLive(BaseModel):
    """The response to a liveness probe when the service is well."""

    live: Literal[True]


class ServerReady(BaseModel):
    """The response to a readiness probe when the service is ready."""

    ready: Literal[True]


class ModelReady(BaseModel):
    """The response to a readiness probe of a model that is ready."""

    name: str
    ready: Literal[True]


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: Annotated[list[str], Field(description="Triton's names of the extensions.")]


class TensorMetadata(BaseModel):
    """An input or output of a model."""

    name: str
    datatype: Annotated[str, Field(description="UINT8, FP32 or BYTES.")]
    shape: Shape


class ModelList(BaseModel):
    """The models of the server."""

    models: Annotated[list[str], Field(description="Their names, also of models that are not loaded.")]


class ModelMetadata(BaseModel):
    """A model."""

    name: str
    versions: Annotated[
        list[str], Field(description="The version that is loaded: that of the model card as a decimal number.")
    ]
    platform: Annotated[str, Field(description="The runtime.")]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputConfig(BaseModel):
    """An input, as in Triton's model configuration."""

    name: str
    data_type: str
    format: Annotated[str, Field(description="FORMAT_NHWC for pixels.")]
    dims: Annotated[list[int], Field(description="The shape without the batch.")]


class OutputConfig(BaseModel):
    """An output, as in Triton's model configuration."""

    name: str
    data_type: str
    dims: Annotated[list[int], Field(description="The shape without the batch.")]


class DynamicBatching(BaseModel):
    """How requests are batched, as in Triton's model configuration."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class ConfigParameter(BaseModel):
    """A parameter, as in Triton's model configuration."""

    string_value: str


class ModelConfig(BaseModel):
    """A model, as in Triton's model configuration."""

    name: str
    platform: Annotated[str, Field(description="The runtime.")]
    max_batch_size: Annotated[int, Field(description="Largest number of images in one request.")]
    input: list[InputConfig]
    output: list[OutputConfig]
    dynamic_batching: DynamicBatching
    parameters: Annotated[
        dict[str, ConfigParameter], Field(description="`version`: that of the model card, as /predict returns it.")
    ]


class Duration(BaseModel):
    """How often something happened and how long it took in total."""

    count: int
    ns: Annotated[int, Field(description="Nanoseconds.")]


class InferenceStatistics(BaseModel):
    """What requests and images took."""

    success: Annotated[Duration, Field(description="Requests with status 200.")]
    fail: Annotated[Duration, Field(description="Requests with another status.")]
    queue: Annotated[Duration, Field(description="The wait of each image for its batch.")]
    compute_input: Annotated[Duration, Field(description="Decoding and preprocessing of each image; 0 ns for pixels.")]
    compute_infer: Annotated[Duration, Field(description="The batch of each image in the engine.")]
    compute_output: Annotated[Duration, Field(description="Each image with 0 ns: it is not measured.")]
    cache_hit: Annotated[Duration, Field(description="Always 0: there is no cache.")]
    cache_miss: Annotated[Duration, Field(description="Always 0: there is no cache.")]


class ModelStatistics(BaseModel):
    """The statistics of a model since the start of the service, over all its endpoints and processes."""

    name: str
    version: str
    last_inference: Annotated[
        int, Field(description="Milliseconds from 1970 to the end of the last successful batch; 0 before it.")
    ]
    inference_count: Annotated[int, Field(description="Images that were classified.")]
    execution_count: Annotated[int, Field(description="Successful batches.")]
    inference_stats: InferenceStatistics
    batch_stats: Annotated[list[Any], Field(description="Always empty: times by batch size are not measured.")]


class Statistics(BaseModel):
    """The statistics of one or all models."""

    model_config = ConfigDict(protected_namespaces=())

    model_stats: list[ModelStatistics]


class IndexEntry(BaseModel):
    """A model in the repository."""

    name: str
    version: Annotated[str, Field(description="Empty while the model is not loaded.")]
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: Annotated[str, Field(description="Why it is not ready; empty if it is.")]


class ResponseOutput(BaseModel):
    """An output tensor."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Annotated[dict[str, Any] | None, Field(description="`binary_data_size` with binary data.")] = None
    data: Annotated[list[Any] | None, Field(description="Flat; left out with binary data.")] = None


class InferenceResponse(BaseModel):
    """The outputs of a model."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str
    outputs: list[ResponseOutput]
