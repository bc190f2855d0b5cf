"""Shared code of the peers: weights, test transform and prediction with torch, torchvision and Pillow."""

import io
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from model.bundle import Bundle, open_bundle
from model.calibration import softmax
from model.card import Calibration, InputSpec
from model.engines.torch import has_bfloat16
from model.engines.torch import load_network as load
from model.nets.base import Network

# As in model/image.py, so that large images get the same prediction.
_DRAFT_MARGIN = 4


def bundle() -> Bundle:
    """The bundle in BENCH_WEIGHTS."""
    return open_bundle(Path(os.environ["BENCH_WEIGHTS"]))


def port() -> int:
    """The port in BENCH_PORT."""
    return int(os.environ["BENCH_PORT"])


def best_device() -> torch.device:
    """CUDA if it is available, like Tenfold."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the hardware supports it, since it is slow if emulated."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def load_network(opened: Bundle) -> Network:
    """The network of the bundle in float32 on the CPU, in evaluation mode."""
    return load(opened).eval()


def load_fast_network(opened: Bundle, device: torch.device) -> nn.Module:
    """The network with channels last, and in bfloat16 if the hardware supports it."""
    net = load_network(opened).to(device, fast_dtype(device))
    return net.to(memory_format=torch.channels_last)


def transform_of(spec: InputSpec) -> v2.Compose:
    """The test transform of the card: PIL image -> normalised float32[3, crop, crop]."""
    return v2.Compose(
        [
            v2.Resize(spec.resize, interpolation=v2.InterpolationMode(spec.interpolation)),
            v2.CenterCrop(spec.crop),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(spec.mean, spec.std),
        ]
    )


def decode_reduced(data: bytes, spec: InputSpec) -> Image.Image:
    """Decode an image file, a JPEG at the smallest scale that is sufficient."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (spec.resize * _DRAFT_MARGIN, spec.resize * _DRAFT_MARGIN))
    return image.convert("RGB")


def top1(logits: Tensor, calibration: Calibration) -> list[tuple[int, float]]:
    """The most probable class of each row and its calibrated probability."""
    probabilities = softmax(logits.float().cpu().numpy(), calibration.temperature, calibration.exponent)
    return list(zip(probabilities.argmax(1).tolist(), probabilities.max(1).tolist(), strict=True))
