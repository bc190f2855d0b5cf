"""PyTorch, kernel by kernel: on the CPU in bfloat16 if it has instructions for it. For CUDA see cuda.py."""

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from model.bundle import Bundle
from model.card import WEIGHTS_FILE, InputSpec
from model.engines.base import DeviceName, Engine, Outputs
from model.engines.conversion import exact_float32, grad_cam, trace
from model.engines.cuda import CudaEngine, require_cuda
from model.errors import CardError, EngineError, IntegrityError, RecipeError
from model.nets.base import Network
from model.nets.zoo import build

Precision = Literal["auto", "bfloat16", "float32"]
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

# Images in the batch that is run before the first request.
_WARM_UP_BATCH = 4


class TorchEngine:
    """A network in evaluation mode.

    In bfloat16 the features are computed under autocast, with the weights of convolutions and linear layers stored in
    bfloat16; normalisation layers keep float32 parameters. The head computes in float32.

    Args:
        net: the engine keeps and converts it.
        spec: mean, std and crop of the card.
        device: "auto" is CUDA if there is a device, else the CPU.
        precision: "auto" is bfloat16 if the device and the network support it (`has_bfloat16`), else float32.

    Raises:
        EngineError: the device is "cuda" and there is none.
    """

    name = "torch"
    preferred_batch = 32
    device: str
    precision: str

    def __init__(
        self, net: Network, spec: InputSpec, *, device: DeviceName = "auto", precision: Precision = "auto"
    ) -> None:
        self._device = torch.device(_available(device))
        self._mean = torch.tensor(spec.mean, device=self._device) * 255
        self._std = torch.tensor(spec.std, device=self._device) * 255
        self._net = net.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layers = trace(self._net, spec.crop).layers
        on_gpu = self._device.type == "cuda"
        self.device = torch.cuda.get_device_name(self._device) if on_gpu else "cpu"
        grey = np.full((_WARM_UP_BATCH, spec.crop, spec.crop, 3), 128, np.uint8)
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(self._device) and self._runs_in_bfloat16(grey) else "float32"
        self._use(precision)
        self.precision = precision
        self.run(grey)  # warm-up before the first request

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "auto", threads: int = 0) -> Engine:
        """The engine that serves the bundle: this class on a CPU, `CudaEngine` on CUDA.

        Raises:
            CardError: the card names a network that does not exist.
            IntegrityError: the weights are not of that network.
            EngineError: there is no such device, or it cannot run the network.
        """
        if threads:
            torch.set_num_threads(threads)
        net = load_network(bundle)
        if (available := _available(device)).startswith("cuda"):
            return CudaEngine(net, bundle.card.input, torch.device(available))
        return cls(net, bundle.card.input, device="cpu")

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode(), self._exact_float32():
            logits, pooled, maps = self._net.forward_head(self._features(pixels))
            return Outputs(logits.cpu().numpy(), pooled.cpu().numpy(), None if maps is None else maps.cpu().numpy())

    def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32] | None:
        if not self._net.spatial:
            return None
        with torch.no_grad(), self._exact_float32():
            found: NDArray[np.float32] = grad_cam(self._net, self._features(pixels), index).cpu().numpy()
        return found

    def _features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Images, uint8[N, H, W, 3], to the last feature map, float32[N, D, h, w]."""
        batch = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float()
        batch = (batch - self._mean[:, None, None]) / self._std[:, None, None]
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            features: Tensor = self._net.forward_features(batch)
        return features.float()

    def _exact_float32(self) -> AbstractContextManager[None]:
        return exact_float32() if self._device.type == "cuda" else nullcontext()

    def _use(self, precision: str) -> None:
        self._dtype = _DTYPES[precision]
        for layer in self._layers:
            layer.to(self._dtype)

    def _runs_in_bfloat16(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether every operation of the network has a bfloat16 kernel. Leaves the weights as they are."""
        exact = {name: tensor.clone() for name, tensor in self._net.state_dict().items()}
        self._use("bfloat16")
        try:
            self.run(pixels)
        except RuntimeError:
            return False
        finally:
            self._use("float32")
            self._net.load_state_dict(exact)  # bfloat16 rounded them
        return True


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16. Without them it is emulated, and much slower than float32.

    The answer follows from the hardware alone, so that equal machines compute alike.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN has the last word: it knows ONEDNN_MAX_CPU_ISA. But it also accepts the emulation on x86.
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in {"x86_64", "AMD64"}:
        return True
    return torch.cpu._is_avx512_bf16_supported()  # as all CPUs with AMX have it


def load_network(bundle: Bundle) -> Network:
    """Build the card's network and load the bundle's weights into it.

    Raises:
        CardError: the card names a network that does not exist.
        IntegrityError: the weights are not of that network.
    """
    architecture = bundle.card.architecture
    try:
        net = build(architecture.name, **architecture.arguments)
    except RecipeError as error:
        raise CardError(f"{bundle.folder}/card.json: architecture: {error}") from error
    try:
        net.load_state_dict(load_file(bundle.folder / WEIGHTS_FILE))
    except Exception as error:
        raise IntegrityError(
            f"{bundle.folder / WEIGHTS_FILE} does not hold the weights of {architecture.name}: export the bundle again"
        ) from error
    return net


def _available(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        require_cuda()
        if (torch.device(device).index or 0) >= torch.cuda.device_count():
            raise EngineError(f"there is no device {device}: this machine has {torch.cuda.device_count()} GPUs")
    return device
