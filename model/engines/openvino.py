"""OpenVINO on the CPU: needs neither torch nor torchvision."""

from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import openvino
from numpy.typing import NDArray

from model.bundle import Bundle
from model.card import OPENVINO_FILES
from model.engines.base import Outputs
from model.errors import EngineError, IntegrityError

# Batches are run in passes of these sizes: OpenVINO keeps 3 to 4 MB for every size that it has ever run, and the first
# pass of a size waits for its kernels to be chosen.
_SIZES = (1, 2, 4, 8, 16, 32)
# What a pass costs beside its pictures, as a share of what one of them costs: 0.9 ms and 1.45 ms, on two slow cores.
_PASS = 0.6
_PRECISIONS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class OpenVinoEngine:
    """A compiled model.

    Args:
        path: of an .xml file, the .bin of the same name beside it, as `model.training.quantize` writes them:
            "pixels" uint8[N, crop, crop, 3] to "logits", "features" and "maps" as in `Outputs`.
        crop: of the card.
        int8: whether its weights are of 8 bits.
        threads: that it computes in; 0 leaves it to OpenVINO.

    Raises:
        IntegrityError: the model lacks one of these outputs.
        openvino's own RuntimeError: the file is not a model.
    """

    name = "openvino"
    device = "cpu"
    precision: str
    threads: int
    """That it computes in."""

    def __init__(self, path: Path, crop: int, *, int8: bool, threads: int = 0) -> None:
        options: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(path, "CPU", options)
        given = {name for output in compiled.outputs for name in output.names}
        if lacking := ", ".join(name for name in Outputs._fields if name not in given):
            raise IntegrityError(f"{path} does not give {lacking}: run python -m model.quantize again")
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
            EngineError: it has none.
            IntegrityError: OpenVINO cannot read it, or it was made before engines gave maps.
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
        for size in cheapest_passes(len(pixels)):
            count = min(size, len(pixels) - start)
            # Whatever an earlier batch left in the rows up to `size` is computed with, and left out.
            self._pixels[:count] = pixels[start : start + count]
            found = self._request.infer({"pixels": self._pixels[:size]}, share_inputs=True)
            parts.append(tuple(found[name][:count] for name in Outputs._fields))
            start += count
        if len(parts) == 1:
            return Outputs(*parts[0])
        return Outputs(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))


@cache
def cheapest_passes(count: int) -> tuple[int, ...]:
    """The sizes of the passes, largest first, that run so many pictures at the least cost.

    The last may be larger than what is left for it: 15 pictures are one pass of 16, and 18 are 16 and 2, not 32.
    """
    whole, rest = divmod(count, _SIZES[-1])
    plans = [(size, *cheapest_passes(max(0, rest - size))) for size in _SIZES] if rest else [()]
    cheapest = min(plans, key=lambda plan: sum(plan) + _PASS * len(plan))
    return (_SIZES[-1],) * whole + tuple(sorted(cheapest, reverse=True))
