"""The engine protocol, and the choice of one. Imports no runtime: an engine does that when it is constructed."""

import ctypes
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from model.errors import EngineError

EngineName = Literal["auto", "openvino", "torch"]
DeviceName = Literal["auto", "cpu", "cuda"]


class Outputs(NamedTuple):
    """What one forward pass gives.

    Every network here ends in a mean over the last stage's h x w cells and a linear layer, so a class's logit is a sum
    over the cells. Its parts are the class activation map (Zhou et al. 2016, arXiv:1512.04150); Grad-CAM of that stage
    (Selvaraju et al. 2017, arXiv:1610.02391) is the positive part of it.

    Attributes:
        logits: float32[N, C].
        features: penultimate, float32[N, D].
        maps: what each cell adds to each logit, float32[N, C, h, w]; with the head's bias they sum to the logits.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    maps: NDArray[np.float32]


@runtime_checkable
class Engine(Protocol):
    """Something that runs the network. It is called from one thread at a time.

    Attributes:
        name: of the runtime, such as "torch".
        device: what it runs on, for people.
        precision: of its arithmetic, such as "bfloat16".
    """

    name: str
    device: str
    precision: str

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """One forward pass over pictures after the test transform, uint8[N, H, W, 3], N >= 1. Normalises inside."""
        ...


def passes(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split a batch into forward passes.

    Args:
        count: pictures in the batch.
        sizes: that the engine runs, smallest first.

    Yields:
        For each pass the number of pictures in it, and its size, the smallest that holds them. All
        passes but the last are of the largest size.
    """
    for start in range(0, count, sizes[-1]):
        taken = min(count - start, sizes[-1])
        yield taken, next(size for size in sizes if size >= taken)


def choose(bundle: Bundle, *, engine: EngineName = "auto", device: DeviceName = "auto", threads: int = 0) -> Engine:
    """Construct the engine asked for.

    Args:
        bundle: opened, so its hashes hold.
        engine: "auto" takes torch where it has a CUDA device, else OpenVINO where that is installed and the bundle
            has a model for it, else torch.
        device: "auto" takes CUDA where there is one, else the CPU.
        threads: of the runtime on a CPU; 0 leaves it to the runtime.

    Raises:
        EngineError: the runtime is not installed or has no such device, or the bundle has no model for it.
    """
    if engine == "auto":
        openvino = bundle.card.openvino is not None and importlib.util.find_spec("openvino") is not None
        engine = "openvino" if openvino and (device == "cpu" or (device == "auto" and not _cuda())) else "torch"
    if engine == "openvino" and device == "cuda":
        raise EngineError(
            "the engine 'openvino' runs on the CPU: set the device to cpu or auto, or the engine to torch"
        )
    try:
        if engine == "openvino":
            from model.engines.openvino import OpenVinoEngine

            return OpenVinoEngine.from_bundle(bundle, threads=threads)
        from model.engines.torch import TorchEngine
    except ImportError as error:
        raise EngineError(
            f"the engine {engine!r} is not installed ({error}): run make install, or set the engine to another"
        ) from error
    return TorchEngine.from_bundle(bundle, device=device, threads=threads)


def _cuda() -> bool:
    """Whether torch can use CUDA here. It is asked only where there is a driver, because to import it takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        import torch
    except (ImportError, OSError):
        return False
    return torch.cuda.is_available()
