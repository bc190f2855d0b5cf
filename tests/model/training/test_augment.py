from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.training.augment import denormalise, normalise, scaled, training_batch
from model.training.recipes import Recipe, recipe_named

# With this mean and deviation, "normalised" pixels are grey levels.
RAW = replace(
    recipe_named("quick"), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255), sizes=(), flip="random", zoom=1.0
)


def noise(count: int, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def augmented(pixels: Tensor, recipe: Recipe, *, epoch: int = 0, seed: int = 0) -> Tensor:
    coin = torch.arange(len(pixels)) % 2 == 0
    return training_batch(
        pixels,
        torch.arange(len(pixels)),
        recipe,
        epoch=epoch,
        coin=coin,
        generator=torch.Generator().manual_seed(seed),
    )


def grey_levels(batch: Tensor) -> NDArray[np.int64]:
    """int64[N, H, W, 3], of a batch that was augmented with RAW."""
    levels: NDArray[np.int64] = batch.permute(0, 2, 3, 1).round().to(torch.int64).numpy()
    return levels


def views(image: NDArray[np.uint8], crop: int, pad: int) -> Iterator[tuple[int, int, bool, NDArray[np.uint8]]]:
    """All possible views of one image: padded by reflection, cropped, flipped."""
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    span = padded.shape[0] - crop + 1
    for top, left, flip in product(range(span), range(span), (False, True)):
        view = padded[top : top + crop, left : left + crop]
        yield top, left, flip, view[:, ::-1] if flip else view


def test_without_flips_no_image_is_flipped() -> None:
    pixels = noise(40)
    found = grey_levels(augmented(pixels, replace(RAW, flip="none", pad=0)))
    assert np.array_equal(found, pixels.numpy())


def test_a_batch_of_pixels_in_a_file_is_made_on_the_device() -> None:
    pixels, recipe = noise(6, 40), replace(RAW, resize=40, pad=0)
    index = torch.tensor([4, 1])
    batch = training_batch(
        pixels,
        index,
        recipe,
        epoch=0,
        coin=torch.zeros(6, dtype=torch.bool),
        generator=torch.Generator().manual_seed(0),
        device=torch.device("meta"),
    )
    assert (batch.device.type, batch.shape) == ("meta", (2, 3, 32, 32))


def test_every_image_is_one_of_its_shifted_and_flipped_views() -> None:
    pixels = noise(120)
    found = grey_levels(augmented(pixels, RAW))
    seen = []
    for before, after in zip(pixels.numpy(), found, strict=True):
        matches = [(top, left, flip) for top, left, flip, view in views(before, 32, 4) if np.array_equal(view, after)]
        assert len(matches) == 1
        seen += matches
    tops, lefts, flips = zip(*seen, strict=True)
    assert set(tops) == set(lefts) == set(range(9)), "every shift from -4 to 4 happens"
    assert 35 < sum(flips) < 85
    assert tops != lefts


def test_the_index_selects_the_images() -> None:
    pixels = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 32, 32, 3).contiguous()
    index = torch.tensor([7, 1, 7])
    batch = training_batch(
        pixels, index, RAW, epoch=0, coin=torch.zeros(10, dtype=torch.bool), generator=torch.Generator().manual_seed(0)
    )
    assert batch.amax((1, 2, 3)).tolist() == pytest.approx([7, 1, 7])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_alternating_flips_turn_every_epoch() -> None:
    recipe = replace(RAW, flip="alternating", pad=0)
    pixels = noise(20)
    upright = pixels.numpy()
    for epoch in range(3):
        found = grey_levels(augmented(pixels, recipe, epoch=epoch, seed=epoch))
        for number, (before, after) in enumerate(zip(upright, found, strict=True)):
            flipped = (number % 2 == 0) ^ (epoch % 2 == 1)
            assert np.array_equal(after, before[:, ::-1] if flipped else before), (epoch, number)


def test_cutout_blanks_one_square_to_the_mean() -> None:
    recipe = replace(RAW, cutout=12)
    white = torch.full((300, 32, 32, 3), 255, dtype=torch.uint8)
    holes = (augmented(white, recipe) == 0).all(1)
    shapes = []
    for hole in holes:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None]), "a rectangle"
        for line in (rows, columns):
            where = line.nonzero()[:, 0]
            assert len(where) == where[-1] - where[0] + 1
        shapes.append((int(rows.sum()), int(columns.sum())))
    # The centre is anywhere in the image, so up to half of the hole can be outside.
    assert max(shapes) == (12, 12)
    assert min(min(shape) for shape in shapes) in (6, 7)
    assert holes.any(0).all()


def test_no_cutout_leaves_no_hole() -> None:
    white = torch.full((20, 32, 32, 3), 255, dtype=torch.uint8)
    assert (augmented(white, RAW) == 255).all()


def squares(count: int) -> Tensor:
    """Black, with a white square of 12 pixels in the middle."""
    pixels = torch.zeros((count, 32, 32, 3), dtype=torch.uint8)
    pixels[:, 10:22, 10:22] = 255
    return pixels


def test_zooming_by_1_changes_nothing() -> None:
    pixels = noise(20)
    plain = augmented(pixels, RAW)
    torch.testing.assert_close(augmented(pixels, replace(RAW, zoom=1 + 1e-9)), plain, atol=0.02, rtol=0)
    assert (augmented(pixels, replace(RAW, zoom=1.2)) - plain).abs().mean() > 10


@pytest.mark.parametrize("most", [1.2, 1.5])
def test_a_square_in_the_middle_is_enlarged_and_shrunk_within_bounds(most: float) -> None:
    batch = augmented(squares(400), replace(RAW, pad=0, zoom=most))[:, 0] / 255
    across, down = batch[:, 15:17].mean(1).sum(1) / 12, batch[:, :, 15:17].mean(2).sum(1) / 12
    torch.testing.assert_close(across, down, atol=0.01, rtol=0)  # the same in height and width
    area = (batch.sum((1, 2)) / 144).sqrt()
    torch.testing.assert_close(area, across, atol=0.05, rtol=0)
    factor = area.log() / np.log(most)
    assert -1.05 < factor.min() < -0.95
    assert 0.95 < factor.max() < 1.05
    # Uniform in the logarithm.
    assert torch.histc(factor, 5, -1.05, 1.05).min() > 50
    assert (batch.flip(1, 2) - batch).abs().max() < 0.01, "about the centre"


def test_zooming_out_shows_no_border() -> None:
    white = torch.full((50, 32, 32, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(augmented(white, replace(RAW, zoom=2.0)), torch.full((50, 3, 32, 32), 255.0))


def test_the_aspect_ratio_changes_within_bounds_and_the_area_stays() -> None:
    batch = augmented(squares(400), replace(RAW, pad=0, aspect=1.5))[:, 0] / 255
    across, down = batch[:, 15:17].mean(1).sum(1), batch[:, :, 15:17].mean(2).sum(1)
    ratio = (across / down).log() / np.log(1.5)
    assert -1.1 < ratio.min() < -0.9
    assert 0.9 < ratio.max() < 1.1
    assert torch.histc(ratio, 5, -1.1, 1.1).min() > 40, "spread evenly in the logarithm"
    torch.testing.assert_close(across * down, torch.full((400,), 144.0), atol=10, rtol=0)


def positions(count: int) -> Tensor:
    """Images whose first two channels are the column and the row of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([columns, rows, rows], dim=-1).to(torch.uint8)
    return image.expand(count, 32, 32, 3).contiguous()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_enlarged_crop_is_moved_within_the_image(share: float) -> None:
    batch = augmented(positions(400), replace(RAW, pad=0, flip="none", zoom=1.5, shift=share))[:, :2]
    centre = (batch.mean((2, 3)) - 15.5) / 16
    extent = torch.stack(
        [
            batch[:, 0, :, 16:].mean((1, 2)) - batch[:, 0, :, :16].mean((1, 2)),
            batch[:, 1, 16:].mean((1, 2)) - batch[:, 1, :16].mean((1, 2)),
        ],
        dim=1,
    )
    extent /= 16
    mirrored = (batch[:, 0].diff(dim=2) < 0).any((1, 2)) | (batch[:, 1].diff(dim=1) < 0).any((1, 2))
    enlarged = ~mirrored & (extent[:, 0] < 0.9)
    distance = (1 - extent)[enlarged] * share
    assert enlarged.sum() > 100
    assert (centre[enlarged].abs() <= distance + 0.02).all()
    if share:
        relative = centre[enlarged] / distance
        assert (relative < -0.8).any(0).all()
        assert (relative > 0.8).any(0).all()
        assert relative[:, 0].dot(relative[:, 1]).abs() < 0.2 * len(relative), "independent of each other"


def test_images_are_rotated_both_ways_within_bounds() -> None:
    bars = torch.zeros(400, 32, 32, 3, dtype=torch.uint8)
    bars[:, 14:18, 6:26] = 255
    batch = augmented(bars, replace(RAW, pad=0, zoom=1.0, rotation=20.0))[:, 0]
    across = torch.arange(32) - 15.5
    # The angle of the longest axis, from the second moments.
    mixed = (batch * across[:, None] * across).sum((1, 2))
    columns, rows = (batch * across**2).sum((1, 2)), (batch * across[:, None] ** 2).sum((1, 2))
    angles = torch.rad2deg(0.5 * torch.atan2(2 * mixed, columns - rows))
    assert angles.abs().max() < 20.5
    assert torch.histc(angles, 5, -20, 20).min() > 50
    torch.testing.assert_close(batch.sum((1, 2)), bars[:, :, :, 0].sum((1, 2)).float(), rtol=0.03, atol=0)


def test_sharpness_moves_an_edge_both_ways_and_keeps_flat_parts() -> None:
    halves = torch.full((200, 32, 32, 3), 100, dtype=torch.uint8)
    halves[:, 16:] = 200
    batch = augmented(halves, replace(RAW, pad=0, sharpness=0.8))
    edge = batch[:, :, 16] - batch[:, :, 15]
    # The 3 x 3 blur (1, 2, 1) halves the step of 100 between the two rows.
    assert 60 <= edge.min() < 65
    assert 135 < edge.max() <= 140.01
    torch.testing.assert_close(batch[:, :, :14], torch.full((200, 3, 14, 32), 100.0))
    torch.testing.assert_close(batch[:, :, 18:], torch.full((200, 3, 14, 32), 200.0))


def test_colours_change_by_image_and_not_by_pixel() -> None:
    recipe = replace(RAW, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), pad=0, colour=0.2)
    grey = torch.full((300, 32, 32, 3), 64, dtype=torch.uint8)
    batch = augmented(grey, recipe)
    assert torch.equal(batch, batch[:, :, :1, :1].expand_as(batch))
    values = batch[:, :, 0, 0]
    # -1 standard deviation, times up to 1.2 * sqrt(1.2), moved by up to 0.2.
    assert -(1.2**1.5) - 0.2 < values.min() < -1.3
    assert -0.75 < values.max() < -(1.2**-1.5) + 0.2
    assert 0.05 < (values[:, 0] - values[:, 1]).abs().max() < 0.6, "the colour balance"


def test_a_small_change_of_colour_changes_little() -> None:
    recipe = replace(RAW, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), pad=0, colour=0.001)
    pixels = noise(10)
    torch.testing.assert_close(
        augmented(pixels, recipe), augmented(pixels, replace(recipe, colour=0.0)), atol=0.01, rtol=0
    )


def test_resizing_equals_pillows_to_one_grey_level() -> None:
    recipe = replace(RAW, resize=40, crop=34, pad=0)
    pixels = noise(4)
    found = grey_levels(augmented(pixels, recipe))
    assert found.shape == (4, 34, 34, 3)
    for before, after in zip(pixels.numpy(), found, strict=True):
        larger = np.asarray(Image.fromarray(before).resize((40, 40), Image.Resampling.BILINEAR))
        gaps = [int(np.abs(after - view.astype(int)).max()) for *_, view in views(larger, 34, 0)]
        assert min(gaps) <= 1


@pytest.mark.parametrize("side", [20, 24, 32])
def test_a_batch_is_scaled_to_the_side(side: int) -> None:
    batch = scaled(augmented(noise(2), RAW), side)
    assert batch.shape == (2, 3, side, side)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_smaller_size_averages_pixels() -> None:
    stripes = torch.zeros((1, 32, 32, 3), dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    batch = scaled(augmented(stripes, replace(RAW, pad=0)), 16)
    assert batch[..., 1:-1].sub(100).abs().max() < 15


def test_normalising_is_minus_mean_over_std() -> None:
    recipe = recipe_named("article")
    batch = normalise(torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 1, 1, 3), recipe)
    expected = [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert batch.shape == (1, 3, 1, 1)
    assert batch.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_denormalising_gives_the_pixels_back_and_clips() -> None:
    recipe = recipe_named("quick")
    pixels = noise(3)
    batch = normalise(pixels, recipe)
    assert torch.equal(denormalise(batch, recipe), pixels)
    extreme = torch.tensor([-100.0, 100.0])[:, None, None, None].expand(2, 3, 1, 1)
    assert denormalise(extreme, recipe).flatten().tolist() == [0, 0, 0, 255, 255, 255]
