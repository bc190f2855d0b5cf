"""OpenVINO on the CPU: needs neither torch nor torchvision."""

from pathlib import Path
from typing import Self

import numpy as np
import openvino
from numpy.typing import NDArray

from model.bundle import Bundle
from model.card import OPENVINO_FILES
from model.engines.base import Outputs
from model.engines.passes import split
from model.errors import EngineError, IntegrityError

# The sizes of a pass. OpenVINO keeps 3 to 4 MB for every size that it has ever run, and chooses the kernels of a size
# in its first pass.
_SIZES = (1, 2, 4, 8, 16, 32)
# What a pass costs in addition to its images, in units of the cost of one image: 0.9 ms and 1.45 ms, on two slow cores.
_OVERHEAD = 0.6
_PRECISIONS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class OpenVinoEngine:
    """A compiled model.

    Args:
        path: of an .xml file, with the .bin of the same name beside it, as `model.training.quantize` writes them:
            "pixels" uint8[N, crop, crop, 3] to "logits", "features" and, if the network has them, "maps" as in
            `Outputs`.
        crop: of the card.
        int8: whether its weights have 8 bits.
        threads: number of threads that it computes in; 0 is OpenVINO's default.

    Raises:
        IntegrityError: the model has no output "logits" or "features".
        openvino's own RuntimeError: the file is not a model.
    """

    name = "openvino"
    device = "cpu"
    preferred_batch = _SIZES[-1]
    precision: str
    threads: int
    """Number of threads that it computes in."""

    def __init__(self, path: Path, crop: int, *, int8: bool, threads: int = 0) -> None:
        # A mapped file would change the weights, or end the process, when the file is overwritten while it is served.
        options: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_MMAP": False}
        if int8:  # the few other layers too compute the same on every CPU
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(path, "CPU", options)
        present = {name for output in compiled.outputs for name in output.names}
        if missing := ", ".join(sorted({"logits", "features"} - present)):
            raise IntegrityError(f"{path} has no output {missing}: run python -m model.quantize again")
        self._outputs = tuple(name for name in Outputs._fields if name in present)
        self.precision = "int8" if int8 else _PRECISIONS[compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self.threads = compiled.get_property("INFERENCE_NUM_THREADS")
        self._request = compiled.create_infer_request()
        self._pixels = np.zeros((_SIZES[-1], crop, crop, 3), np.uint8)
        for size in _SIZES:
            self.run(self._pixels[:size])

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, threads: int = 0) -> Self:
        """Compile the bundle's OpenVINO model.

        Raises:
            EngineError: the bundle has none.
            IntegrityError: OpenVINO cannot read it, or it lacks an output.
        """
        about = bundle.card.openvino
        if about is None:
            raise EngineError(
                f"{bundle.folder} holds no OpenVINO model: add one with python -m model.quantize, or set the engine "
                "to torch"
            )
        path = bundle.folder / OPENVINO_FILES[0]
        try:
            return cls(path, bundle.card.input.crop, int8=about.weights == "int8", threads=threads)
        except RuntimeError as error:
            raise IntegrityError(
                f"{path} cannot be run by OpenVINO {openvino.__version__}: run python -m model.quantize again"
            ) from error

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        parts, start = [], 0
        for count, size in split(len(pixels), _SIZES, _OVERHEAD):
            # The rows from `count` to `size` hold images of an earlier batch. They are computed, but not returned.
            self._pixels[:count] = pixels[start : start + count]
            found = self._request.infer({"pixels": self._pixels[:size]}, share_inputs=True)
            parts.append([found[name][:count] for name in self._outputs])
            start += count
        rows = parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]
        return Outputs(rows[0], rows[1], rows[2] if len(rows) == 3 else None)
