"""Augmentation of whole batches on the device: no Python code per image."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.training.recipes import Recipe


@dataclass(frozen=True, slots=True)
class _Draws:
    """Random numbers for a part of a batch, which are the same as in the whole batch."""

    generator: torch.Generator
    count: int
    part: slice

    def uniform(self, *shape: int) -> Tensor:
        """float32[N, *shape] in 0..1, where N is the number of images of the part."""
        return torch.rand(self.count, *shape, generator=self.generator)[self.part]

    def integers(self, low: int, high: int) -> Tensor:
        """Two from low..high-1 for each image, int64[2, N, 1]."""
        return torch.randint(low, high, (2, self.count, 1), generator=self.generator)[:, self.part]

    def factors(self, most: float, *shape: int) -> Tensor:
        """float32[N, *shape] between 1/most and most, spread evenly in the logarithm."""
        return torch.exp((2 * self.uniform(*shape) - 1) * math.log(most))


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Values in CPU memory, on the device. A plain copy to a GPU would wait for the work that is queued there."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def normalise(pixels: Tensor, recipe: Recipe) -> Tensor:
    """uint8 or float[N, H, W, 3] of 0..255 to normalised float32[N, 3, H, W] in channels-last memory."""
    mean = moved(torch.tensor(recipe.mean) * 255, pixels.device)
    std = moved(torch.tensor(recipe.std) * 255, pixels.device)
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


def denormalise(batch: Tensor, recipe: Recipe) -> Tensor:
    """The inverse of `normalise`: float[N, 3, H, W] to uint8[N, H, W, 3], rounded and clipped to 0..255."""
    mean = torch.tensor(recipe.mean, device=batch.device) * 255
    std = torch.tensor(recipe.std, device=batch.device) * 255
    return (batch.permute(0, 2, 3, 1) * std + mean).round().clamp(0, 255).to(torch.uint8)


def training_batch(
    pixels: Tensor,
    index: Tensor,
    recipe: Recipe,
    *,
    epoch: int,
    coin: Tensor,
    generator: torch.Generator,
    device: torch.device | None = None,
    part: slice = slice(None),
) -> Tensor:
    """One augmented batch: resize, random crop from the reflected border, flip, normalise, cutout.

    Args:
        pixels: the whole data set, uint8[M, H, W, 3], on the device or, if it is memory-mapped, on the CPU.
        index: of the images, int64[N], on the CPU.
        recipe: the augmentation.
        epoch: from 0; for the alternating flips.
        coin: one random bit for each image of the data set, bool[M], on the CPU; for alternating flips.
        generator: of all random numbers, on the CPU.
        device: of the batch; None for that of `pixels`.
        part: of the batch that is returned. Its images are the same as in the whole batch.

    Returns:
        float32[N, 3, crop, crop], normalised, in channels-last memory.
    """
    draws = _Draws(generator, len(index), part)
    index = index[part]
    device, count = device or pixels.device, len(index)
    if recipe.flip == "none":
        flip = torch.zeros(count, dtype=torch.bool)
    elif recipe.flip == "alternating":
        flip = coin[index] ^ bool(epoch % 2)
    else:
        flip = draws.uniform() < 0.5

    if device != pixels.device:
        pixels, index = moved(pixels[index], device), torch.arange(count)
    source, number = pixels, index
    if recipe.resize != pixels.shape[1]:
        source, number = _resized(pixels[moved(index, device)], recipe.resize), torch.arange(count)
    side, crop, pad = source.shape[1], recipe.crop, recipe.pad
    offset = draws.integers(-pad, side - crop + pad + 1)
    rows, columns = _reflect(torch.arange(crop) + offset, side)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    # One gather selects, shifts and flips.
    images = moved(number, device)[:, None, None]
    cropped = source[images, moved(rows, device)[:, :, None], moved(columns, device)[:, None, :]]

    batch = normalise(cropped, recipe)
    if recipe.zoom > 1 or recipe.aspect > 1 or recipe.rotation:
        batch = _transformed(batch, recipe, draws)
    if recipe.sharpness:
        batch = _sharpened(batch, recipe.sharpness, draws)
    if recipe.colour:
        batch = _recoloured(batch, recipe.colour, draws)
    if recipe.cutout:
        batch = batch * ~moved(_square(crop, recipe.cutout, draws), device)
    return batch.contiguous(memory_format=torch.channels_last)


def scaled(batch: Tensor, side: int) -> Tensor:
    """float[N, 3, H, H] to float[N, 3, side, side] in channels-last memory, for progressive resizing."""
    if side != batch.shape[-1]:
        batch = F.interpolate(batch, (side, side), mode="bilinear", antialias=True)
    return batch.contiguous(memory_format=torch.channels_last)


def _resized(pixels: Tensor, side: int) -> Tensor:
    """uint8[N, H, W, 3] to uint8[N, side, side, 3], rounded as in Pillow."""
    planes = pixels.permute(0, 3, 1, 2).float()
    larger = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return larger.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _transformed(batch: Tensor, recipe: Recipe, draws: _Draws) -> Tensor:
    """Each image enlarged by a factor between 1/zoom and zoom, stretched by one between 1/aspect and aspect in width
    relative to its height, moved and rotated; mirrored at the border."""
    count = len(batch)
    factor = draws.factors(recipe.zoom)
    stretch = draws.factors(recipe.aspect).sqrt() if recipe.aspect > 1 else torch.ones(count)
    # Half the width and height of what the result shows, as shares of those of the image.
    extent = torch.stack([stretch / factor, 1 / (stretch * factor)], dim=1)
    affine = torch.zeros(count, 2, 3)
    affine[:, :, :2] = torch.diag_embed(extent)
    if recipe.shift:
        affine[:, :, 2] = (2 * draws.uniform(2) - 1) * recipe.shift * (1 - extent).abs()
    if recipe.rotation:
        angle = (2 * draws.uniform() - 1) * math.radians(recipe.rotation)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
        affine[:, :, :2] = affine[:, :, :2] @ turn
    grid = F.affine_grid(moved(affine, batch.device), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _sharpened(batch: Tensor, most: float, draws: _Draws) -> Tensor:
    """Each image moved by between -most (blurred) and most (sharpened) of its difference from a 3 x 3 blur."""
    padded = F.pad(batch, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    blurred = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    amount = (2 * draws.uniform(1, 1, 1) - 1) * most
    return batch + moved(amount, batch.device) * (batch - blurred)


def _recoloured(batch: Tensor, most: float, draws: _Draws) -> Tensor:
    """Saturation, contrast and colour balance of each image times a factor between 1/(1+most) and 1+most, then
    brightness moved by up to `most` standard deviations of the data set."""
    device = batch.device
    saturation = moved(draws.factors(1 + most, 1, 1, 1), device)
    gain = draws.factors(1 + most, 3, 1, 1).sqrt()
    gain = moved(gain * draws.factors(1 + most, 1, 1, 1), device)
    shift = moved((2 * draws.uniform(1, 1, 1) - 1) * most, device)
    grey = batch.mean(dim=1, keepdim=True)
    return (grey + saturation * (batch - grey)) * gain + shift


def _reflect(position: Tensor, side: int) -> Tensor:
    """Positions outside 0..side-1 mirrored at the border, without repeating the border itself."""
    position = position.abs()
    return torch.where(position >= side, 2 * (side - 1) - position, position)


def _square(side: int, hole: int, draws: _Draws) -> Tensor:
    """bool[N, 1, side, side], true inside a square whose centre is anywhere in the image."""
    axis = torch.arange(side)
    start = draws.integers(0, side) - hole // 2
    inside: Tensor = (axis >= start) & (axis < start + hole)
    return inside[0, :, None, :, None] & inside[1, :, None, None, :]
