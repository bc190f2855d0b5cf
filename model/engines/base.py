"""The engine protocol, and the choice of one. Imports no runtime: an engine does that when it is constructed."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from model.errors import EngineError

EngineName = Literal["auto", "torch"]
DeviceName = Literal["auto", "cpu", "cuda"]


class Outputs(NamedTuple):
    """What one forward pass gives: logits float32[N, C], and the penultimate features float32[N, D]."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


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


def choose(bundle: Bundle, *, engine: EngineName = "auto", device: DeviceName = "auto", threads: int = 0) -> Engine:
    """Construct the engine asked for.

    Args:
        bundle: opened, so its hashes hold.
        engine: "auto" takes the fastest that is installed.
        device: "auto" takes CUDA where there is one, else the CPU.
        threads: of the runtime on a CPU; 0 leaves it to the runtime.

    Raises:
        EngineError: the runtime is not installed or has no such device.
    """
    runtime = "torch" if engine == "auto" else engine
    try:
        from model.engines.torch import TorchEngine
    except ImportError as error:
        raise EngineError(f"the engine {runtime!r} is not installed ({error}): run make install") from error
    return TorchEngine.from_bundle(bundle, device=device, threads=threads)
