"""What the peers share: the same weights, test transform and answer, through plain torch, torchvision and Pillow."""

import io
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from model.bundle import Bundle, open_bundle
from model.card import InputSpec
from model.engines.torch import load_network as load
from model.nets.base import Network

# As model/image.py has it, so that large pictures get the same answer.
_DRAFT_MARGIN = 4


def bundle() -> Bundle:
    """The bundle that the harness names in BENCH_WEIGHTS."""
    return open_bundle(Path(os.environ["BENCH_WEIGHTS"]))


def port() -> int:
    """Where the harness wants the server to listen."""
    return int(os.environ["BENCH_PORT"])


def best_device() -> torch.device:
    """CUDA where there is one, as Tenfold takes it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it; elsewhere it would be emulated, and slow."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def load_network(opened: Bundle) -> Network:
    """The bundle's network in float32 on the CPU, in evaluation mode."""
    return load(opened).eval()


def load_fast_network(opened: Bundle, device: torch.device) -> nn.Module:
    """The same, converted to what the hardware likes best: channels last, and bfloat16 where it has it."""
    net = load_network(opened).to(device, fast_dtype(device))
    return net.to(memory_format=torch.channels_last)


def transform_of(spec: InputSpec) -> v2.Compose:
    """The card's test transform: PIL picture -> float32[3, crop, crop], normalised."""
    return v2.Compose(
        [
            v2.Resize(spec.resize, interpolation=v2.InterpolationMode(spec.interpolation)),
            v2.CenterCrop(spec.crop),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(spec.mean, spec.std),
        ]
    )


def read_drafted(data: bytes, spec: InputSpec) -> Image.Image:
    """Decode a picture file, a JPEG no larger than needed: what somebody who tunes a server finds out."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (spec.resize * _DRAFT_MARGIN, spec.resize * _DRAFT_MARGIN))
    return image.convert("RGB")


def likeliest(logits: Tensor, temperature: float) -> list[tuple[int, float]]:
    """The first class of each row and its calibrated probability."""
    probabilities, classes = (logits.float() / temperature).softmax(1).max(1)
    return list(zip(classes.tolist(), probabilities.tolist(), strict=True))
