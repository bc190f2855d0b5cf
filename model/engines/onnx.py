"""ONNX Runtime on the CPU: needs neither torch nor torchvision."""

from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model.bundle import Bundle
from model.card import ONNX_FILE
from model.engines.base import Outputs
from model.errors import EngineError, IntegrityError


class OnnxEngine:
    """An inference session.

    Args:
        path: of an .onnx file, as `model.training.exchange` writes it: "pixels" uint8[N, crop, crop, 3] to "logits",
            "features" and, if the network has them, "maps" as in `Outputs`.
        threads: number of threads that it computes in; 0 is ONNX Runtime's default.

    Raises:
        onnxruntime's own errors: the file is not a model.
    """

    name = "onnx"
    device = "cpu"
    precision = "float32"
    preferred_batch = 32

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait must not take the CPU from the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        _, height, width, channels = self._session.get_inputs()[0].shape
        self.run(np.zeros((1, height, width, channels), np.uint8))  # warm-up before the first request

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, threads: int = 0) -> Self:
        """Load the bundle's ONNX model.

        Raises:
            EngineError: the bundle has none.
            IntegrityError: ONNX Runtime cannot run it.
        """
        if bundle.card.onnx is None:
            raise EngineError(
                f"{bundle.folder} holds no ONNX model: add one with tenfold export --add, or set the engine to torch"
            )
        path = bundle.folder / ONNX_FILE
        try:
            return cls(path, threads=threads)
        except Exception as error:  # onnxruntime's errors have no common base
            raise IntegrityError(
                f"{path} cannot be run by ONNX Runtime {onnxruntime.__version__}: run tenfold export --add again"
            ) from error

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        found = dict(zip(self._outputs, self._session.run(self._outputs, {"pixels": pixels}), strict=True))
        return Outputs(found["logits"], found["features"], found.get("maps"))
