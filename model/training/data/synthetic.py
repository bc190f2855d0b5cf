"""Synthetic images in ten classes. They need no files and are learned in seconds."""

import torch

from model.training.data.sets import LabeledImages

_SEED = 1
_CLASSES = 10


def synthetic(count: int, stream: int) -> LabeledImages:
    """Noisy images of a grating, whose hue and orientation depend on the class.

    Args:
        count: number of images.
        stream: number of the sequence. Equal arguments give equal images.
    """
    generator = torch.Generator().manual_seed(_SEED + stream)
    labels = torch.arange(count) % _CLASSES
    angle = labels * (torch.pi / _CLASSES)
    axis = torch.linspace(-1, 1, 32)
    along = (
        axis[None, :, None] * torch.sin(angle)[:, None, None] + axis[None, None, :] * torch.cos(angle)[:, None, None]
    )
    phase = torch.rand(count, 1, 1, generator=generator) * 2 * torch.pi
    grating = torch.sin(10 * along + phase)
    hue = torch.stack([torch.cos(angle * 2 + shift) for shift in (0.0, 2.1, 4.2)], dim=-1)
    clean = 128 + 60 * grating[..., None] * hue[:, None, None, :] + 30 * hue[:, None, None, :]
    noise = 20 * torch.randn(clean.shape, generator=generator)
    return LabeledImages((clean + noise).clamp(0, 255).to(torch.uint8), labels)
