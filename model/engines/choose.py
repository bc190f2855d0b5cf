"""The choice of an engine. A runtime is imported only if its engine is chosen."""

import ctypes
import importlib.util
import sys

from model.bundle import Bundle
from model.engines.base import Engine, EngineName
from model.errors import EngineError


def choose(bundle: Bundle, *, engine: EngineName = "auto", device: str = "auto", threads: int = 0) -> Engine:
    """Construct an engine for the bundle.

    Args:
        bundle: opened, so its hashes are verified.
        engine: "auto" is torch if there is a CUDA device, else OpenVINO or ONNX Runtime if it is installed and the
            bundle has a model for it, else torch.
        device: a `DeviceName`, or one of several GPUs, such as "cuda:1". "auto" is CUDA if there is a device, else the
            CPU.
        threads: number of threads on a CPU; 0 is the runtime's default.

    Raises:
        EngineError: the runtime is not installed or has no such device, or the bundle has no model for it.
    """
    if engine == "auto":
        engine = _for_cpu(bundle) if device == "cpu" or (device == "auto" and not _cuda()) else "torch"
    if engine != "torch" and device.startswith("cuda"):
        raise EngineError(
            f"the engine {engine!r} runs on the CPU: set the device to cpu or auto, or the engine to torch"
        )
    try:
        if engine == "openvino":
            from model.engines.openvino import OpenVinoEngine

            return OpenVinoEngine.from_bundle(bundle, threads=threads)
        if engine == "onnx":
            from model.engines.onnx import OnnxEngine

            return OnnxEngine.from_bundle(bundle, threads=threads)
        from model.engines.torch import TorchEngine
    except ImportError as error:
        raise EngineError(
            f"the engine {engine!r} is not installed ({error}): run make install, or set the engine to another"
        ) from error
    return TorchEngine.from_bundle(bundle, device=device, threads=threads)


def _for_cpu(bundle: Bundle) -> EngineName:
    """The fastest engine on a CPU that is installed and that the bundle has a model for."""
    if bundle.card.openvino is not None and importlib.util.find_spec("openvino") is not None:
        return "openvino"
    if bundle.card.onnx is not None and importlib.util.find_spec("onnxruntime") is not None:
        return "onnx"
    return "torch"


def _cuda() -> bool:
    """Whether torch can use CUDA. It is imported only if there is a driver, because the import takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        import torch
    except (ImportError, OSError):
        return False
    return torch.cuda.is_available()
