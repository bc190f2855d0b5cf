"""PyTorch on CUDA: forward passes of a few batch sizes, captured once as CUDA graphs and replayed for every batch."""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.card import InputSpec
from model.engines.base import Outputs, passes
from model.errors import EngineError
from model.nets.resnet import ResNet
from model.nets.zoo import map_size

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# Most pixels in one forward pass: with 64 channels of 16 bits a layer of that many holds 128 MiB, and about four
# layers are alive at once.
_MOST_PIXELS = 2**20
# As often as PyTorch's notes on CUDA graphs run a network before it is captured.
_WARM_UPS = 3


class CudaEngine:
    """A network in evaluation mode, as CUDA graphs.

    At small batches a ResNet-18 is so short on a GPU that it waits for Python to launch its kernels; a graph launches
    all of them at once. A graph has one batch size, so a batch is filled up to the next one, and a batch larger than
    the largest is split (`passes`). Pixels cross the bus as bytes, from pinned memory; the network computes in
    bfloat16, or in float16 where the card has no bfloat16, with each BatchNorm folded into its convolution; the head
    computes in float32.

    The engine may be called from another thread than the one that constructed it, but from one at a time. It keeps
    the memory of its largest graph (`graph_sizes`) for as long as it lives.

    Args:
        net: the engine keeps and converts it.
        spec: mean, std and crop of the card. The graphs are of pictures of crop x crop.

    Raises:
        EngineError: there is no CUDA device, or the graphs cannot be captured on it.
    """

    name = "torch"
    device: str
    precision: str

    def __init__(self, net: ResNet, spec: InputSpec) -> None:
        require_cuda()
        self._sizes = graph_sizes(spec.crop)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        try:
            self._load(net, spec)
            with torch.inference_mode():
                self._capture()
            for size in self._sizes:  # a graph's first launch uploads it: not while the first request waits
                self.run(np.zeros((size, spec.crop, spec.crop, 3), np.uint8))
        except RuntimeError as error:  # out of memory is one, too
            reason = str(error).partition("\n")[0]
            raise EngineError(
                f"CUDA graphs cannot be captured here ({reason}): free the GPU's memory, or set the device to cpu"
            ) from error

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """One forward pass over uint8[N, crop, crop, 3], or several if N is larger than the largest graph.

        The arrays returned are the caller's own: no later call writes to them.

        Raises:
            EngineError: the pixels are of another shape or type.
        """
        _, *picture = self._staged.shape
        if list(pixels.shape[1:]) != picture or pixels.dtype != np.uint8:
            raise EngineError(
                f"the CUDA graphs take uint8[N, {', '.join(map(str, picture))}], not {pixels.dtype}{list(pixels.shape)}"
            )
        rows = np.empty((len(pixels), self._landed.shape[1]), np.float32)
        start = 0
        # Both are settings of a thread, and this need not be the one that captured the graphs.
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for count, size in passes(len(pixels), self._sizes):
                stop = start + count
                self._staged[:count] = pixels[start:stop]
                # Whatever an earlier batch left in the rows up to `size` is computed with, and not fetched.
                self._pixels[:count].copy_(self._staging[:count], non_blocking=True)
                self._graphs[size].replay()
                self._landing[:count].copy_(self._outputs[:count], non_blocking=True)
                self._stream.synchronize()
                rows[start:stop] = self._landed[:count]
                start = stop
        logits, features, maps = np.split(rows, self._ends, axis=1)
        return Outputs(logits, features, maps.reshape(len(pixels), logits.shape[1], *self._cells))

    def _load(self, net: ResNet, spec: InputSpec) -> None:
        """Bring the network to the device, and make the buffers that every graph reads from and writes to."""
        device = torch.device("cuda", torch.cuda.current_device())
        self.device = torch.cuda.get_device_name(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        self.precision = "bfloat16" if native else "float16"
        self._dtype = torch.bfloat16 if native else torch.float16

        self._cells = map_size(net, spec.crop)
        self._net = fold_batch_norms(net.eval())
        for module in self._net.modules():
            if isinstance(module, nn.Conv2d):  # the head is too small to be worth a loss
                module.to(self._dtype)
        self._net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(spec.mean, device=device)[:, None, None] * 255
        self._std = torch.tensor(spec.std, device=device)[:, None, None] * 255

        largest, classes, width = self._sizes[-1], net.fc.out_features, net.fc.in_features
        pictures = (largest, spec.crop, spec.crop, 3)
        self._ends = (classes, classes + width)  # of logits and features; maps are the rest of a row
        rows = (largest, classes + width + classes * math.prod(self._cells))  # to come back in one copy
        self._staging = torch.zeros(pictures, dtype=torch.uint8, pin_memory=True)
        self._pixels = torch.zeros(pictures, dtype=torch.uint8, device=device)
        self._outputs = torch.zeros(rows, device=device)
        self._landing = torch.zeros(rows, pin_memory=True)
        self._staged: NDArray[np.uint8] = self._staging.numpy()
        self._landed: NDArray[np.float32] = self._landing.numpy()

        # What is above was ordered on the thread's own stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def _capture(self) -> None:
        """Capture a graph of every size, after https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

        They share a memory pool, which is safe because they are replayed on one stream, one after the other, and
        leave nothing in it that is read later: what goes in and comes out has its own buffers. The largest is captured
        first, so that the others fit into what it took.
        """
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            # On the stream of the capture: libraries choose their algorithms and take their workspaces by stream.
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    self._forward(size)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another classifier may be at work in another thread, and neither is to fail for it.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                self._forward(size)
            self._graphs[size] = graph

    def _forward(self, size: int) -> None:
        """Order the work of one forward pass over the first `size` pictures: no copy to or from the CPU, no wait."""
        batch = self._pixels[:size].permute(0, 3, 1, 2)
        batch = ((batch - self._mean) / self._std).to(self._dtype, memory_format=torch.channels_last)
        logits, features, maps = self._net.head(self._net.stages(batch).float())
        torch.cat((logits, features, maps.flatten(1)), dim=1, out=self._outputs[:size])


def require_cuda() -> None:
    """Raises:
    EngineError: PyTorch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise EngineError("there is no CUDA device here: set the device to cpu or auto")


def graph_sizes(crop: int) -> tuple[int, ...]:
    """The batch sizes that are captured for pictures of crop x crop pixels, smallest first.

    They are the powers of two from 1 to 128 whose batch has at most 2^20 pixels: up to 128 at 32 x 32, up to 16 at
    224 x 224, where a ResNet-18 that does not shrink its input first takes about half a GiB. There is always 1.
    """
    return tuple(size for size in _SIZES if size == 1 or size * crop**2 <= _MOST_PIXELS)


def fold_batch_norms(net: ResNet) -> ResNet:
    """Fold every BatchNorm into the convolution before it: one multiplication and its rounding less.

    Every convolution of model/nets is registered just before its BatchNorm. The network is altered and returned; it
    must be in evaluation mode.
    """
    for module in list(net.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return net
