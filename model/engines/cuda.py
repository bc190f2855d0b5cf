"""PyTorch on CUDA: forward passes of a few batch sizes, captured once as CUDA graphs and replayed for every batch."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.card import InputSpec
from model.engines.base import Outputs
from model.engines.conversion import exact_float32, fuse_batch_norms, grad_cam, trace
from model.engines.passes import split
from model.errors import EngineError
from model.nets.base import Network

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# Most pixels in one forward pass: with 64 channels of 16 bits a layer of that many holds 128 MiB, and about four
# layers are alive at once.
_MOST_PIXELS = 2**20
# The number of passes before a capture in PyTorch's notes on CUDA graphs.
_WARM_UPS = 3


class CudaEngine:
    """A network in evaluation mode, as CUDA graphs.

    At small batches a ResNet-18 is so short on a GPU that it waits for Python to launch its kernels; a graph launches
    all of them at once. A graph has one batch size, so a batch is padded to the next one, and a batch larger than the
    largest is split. Pixels cross the bus as bytes, from pinned memory. The features are computed in bfloat16, or in
    float16 if the GPU has no bfloat16, with each BatchNorm folded into its convolution; the head computes in float32.

    The engine can be called from another thread than the one that constructed it, but from one at a time. It keeps the
    memory of its largest graph (`graph_sizes`) as long as it lives.

    Args:
        net: the engine keeps and converts it.
        spec: mean, std and crop of the card. The graphs are for images of crop x crop pixels.
        device: one of several GPUs; the present one by default.

    Raises:
        EngineError: there is no CUDA device, or the graphs cannot be captured on it.
    """

    name = "torch"
    device: str
    precision: str
    preferred_batch: int

    def __init__(self, net: Network, spec: InputSpec, device: torch.device | None = None) -> None:
        require_cuda()
        self._sizes = graph_sizes(spec.crop)
        self.preferred_batch = self._sizes[-1]
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        try:
            with torch.cuda.device(device):
                self._load(net, spec)
                with torch.inference_mode():
                    self._capture()
                for size in self._sizes:  # a graph's first launch uploads it: before the first request
                    self.run(np.zeros((size, spec.crop, spec.crop, 3), np.uint8))
        except RuntimeError as error:  # out of memory is one, too
            reason = str(error).partition("\n")[0]
            raise EngineError(
                f"CUDA graphs cannot be captured here ({reason}): free the GPU's memory, or set the device to cpu"
            ) from error

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Run the network on uint8[N, crop, crop, 3], in several passes if N is larger than the largest graph.

        No later call writes to the returned arrays.

        Raises:
            EngineError: the pixels have another shape or type.
        """
        _, *image = self._staged.shape
        if list(pixels.shape[1:]) != image or pixels.dtype != np.uint8:
            raise EngineError(
                f"the CUDA graphs take uint8[N, {', '.join(map(str, image))}], not {pixels.dtype}{list(pixels.shape)}"
            )
        rows = np.empty((len(pixels), self._landed.shape[1]), np.float32)
        start = 0
        # Both are settings of a thread, and this can be another thread than the one that captured the graphs.
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            # As few passes as possible: the overhead is more than any padding.
            for count, size in split(len(pixels), self._sizes, overhead=self._sizes[-1]):
                stop = start + count
                self._staged[:count] = pixels[start:stop]
                # The rows from `count` to `size` hold images of an earlier batch. They are computed, but not returned.
                self._pixels[:count].copy_(self._staging[:count], non_blocking=True)
                self._graphs[size].replay()
                self._landing[:count].copy_(self._outputs[:count], non_blocking=True)
                self._stream.synchronize()
                rows[start:stop] = self._landed[:count]
                start = stop
        logits, features, maps = np.split(rows, self._ends, axis=1)
        return Outputs(logits, features, maps.reshape(len(pixels), *self._maps) if self._maps else None)

    def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32] | None:
        """As in `GradientEngine`, without a graph."""
        if not self._net.spatial:
            return None
        with torch.no_grad(), torch.cuda.stream(self._stream), exact_float32():
            features = self._features(torch.from_numpy(pixels).to(self._mean.device))
            found: NDArray[np.float32] = grad_cam(self._net, features, index).cpu().numpy()
        return found

    def _load(self, net: Network, spec: InputSpec) -> None:
        """Move the network to the device, and allocate the buffers that every graph reads from and writes to."""
        device = torch.device("cuda", torch.cuda.current_device())
        self.device = torch.cuda.get_device_name(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        self.precision = "bfloat16" if native else "float16"
        self._dtype = torch.bfloat16 if native else torch.float16

        self._net = net.eval()
        traced = trace(self._net, spec.crop)
        for layer in (*fuse_batch_norms(self._net, traced.fusible), *traced.layers):
            layer.to(self._dtype)
        self._net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(spec.mean, device=device)[:, None, None] * 255
        self._std = torch.tensor(spec.std, device=device)[:, None, None] * 255

        logits, features, maps = traced.out
        largest, classes, width = self._sizes[-1], logits.shape[1], features.shape[1]
        images = (largest, spec.crop, spec.crop, 3)
        self._maps = () if maps is None else tuple(maps.shape[1:])
        self._ends = (classes, classes + width)  # of logits and features; the maps are the rest of a row
        # One row holds all outputs of an image, so that they come back in one copy.
        rows = (largest, classes + width + (math.prod(self._maps) if self._maps else 0))
        self._staging = torch.zeros(images, dtype=torch.uint8, pin_memory=True)
        self._pixels = torch.zeros(images, dtype=torch.uint8, device=device)
        self._outputs = torch.zeros(rows, device=device)
        self._landing = torch.zeros(rows, pin_memory=True)
        self._staged: NDArray[np.uint8] = self._staging.numpy()
        self._landed: NDArray[np.float32] = self._landing.numpy()

        # All of the above was issued on the thread's own stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def _capture(self) -> None:
        """Capture a graph of every size, after https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

        The graphs share a memory pool. That is safe because they are replayed on one stream, one after the other, and
        their inputs and outputs have buffers of their own. The largest is captured first, so that the others fit into
        its memory.
        """
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            # On the stream of the capture: libraries choose algorithms and allocate workspaces for each stream.
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    self._forward(size)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another classifier can run in another thread, and neither must fail because of the other.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                self._forward(size)
            self._graphs[size] = graph

    def _forward(self, size: int) -> None:
        """Issue one forward pass over the first `size` images, without a copy to or from the CPU and without a wait."""
        with exact_float32():
            logits, pooled, maps = self._net.forward_head(self._features(self._pixels[:size]))
        parts = (logits, pooled) if maps is None else (logits, pooled, maps.flatten(1))
        torch.cat(parts, dim=1, out=self._outputs[:size])

    def _features(self, pixels: Tensor) -> Tensor:
        """Images on the device, uint8[N, H, W, 3], to the last feature map, float32[N, D, h, w]."""
        batch = pixels.permute(0, 3, 1, 2)
        batch = ((batch - self._mean) / self._std).to(self._dtype, memory_format=torch.channels_last)
        with torch.autocast("cuda", self._dtype, cache_enabled=False):
            features: Tensor = self._net.forward_features(batch)
        return features.float()


def require_cuda() -> None:
    """Raises:
    EngineError: PyTorch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise EngineError("there is no CUDA device here: set the device to cpu or auto")


def graph_sizes(crop: int) -> tuple[int, ...]:
    """The batch sizes that are captured for images of crop x crop pixels, smallest first.

    They are the powers of two from 1 to 128 whose batch has at most 2^20 pixels: up to 128 at 32 x 32, up to 16 at
    224 x 224, where a ResNet-18 whose stem keeps the image size takes about half a GiB. 1 is always among them.
    """
    return tuple(size for size in _SIZES if size == 1 or size * crop**2 <= _MOST_PIXELS)
