import io
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from model.card import InputSpec
from model.decode import FORMATS
from model.errors import ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage
from model.image import PreprocessedImage, preprocess
from model.image import test_transform as transform
from model.training.recipes import IMAGENET_MEAN, IMAGENET_STD
from model.views import MAX_VIEWS

LIMIT = 50_000_000
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 92}, "MPO": {"quality": 92}, "AVIF": {"quality": 90}, "GIF": {}}


def spec_of(resize: int, crop: int, interpolation: str = "bilinear") -> InputSpec:
    return InputSpec.model_validate(
        {"resize": resize, "crop": crop, "interpolation": interpolation, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    )


def encoded(pixels: Image.Image | NDArray[Any], file_format: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def corners() -> NDArray[np.uint8]:
    """60 x 40 pixels with a different colour in each corner, so that every orientation looks different."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30] = 255, 0, 0
    image[:20, 30:] = 0, 255, 0
    image[20:, :30] = 0, 0, 255
    return image


def far_apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean absolute difference, grey levels."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# The transform


@pytest.mark.parametrize(
    ("resize", "crop", "interpolation"),
    [(32, 32, "bilinear"), (256, 224, "bilinear"), (256, 224, "bicubic"), (40, 33, "bicubic")],
)
def test_the_transform_equals_torchvisions(resize: int, crop: int, interpolation: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    theirs = Compose([Resize(resize, InterpolationMode(interpolation)), CenterCrop(crop)])
    random_sizes = np.random.default_rng(0).integers(20, 320, (25, 2)).tolist()
    for width, height in [[resize, resize], [resize, 300], [1, 1], [3, 48], [451, 300], [511, 512], *random_sizes]:
        noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(noise)
        ours = transform(image, spec_of(resize, crop, interpolation))
        assert np.array_equal(ours, np.asarray(theirs(image))), f"{width} x {height}"


def test_the_pixels_are_a_copy(cat_png: bytes, spec: InputSpec) -> None:
    pixels = preprocess(cat_png, spec, max_pixels=LIMIT).pixels
    assert pixels.shape == (1, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable  # torch warns of others


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1)])
def test_a_long_strip_is_cut_before_it_is_enlarged(shape: tuple[int, int]) -> None:
    # Enlarged whole it would take 52 GB.
    strip = np.full((*shape, 3), (9, 8, 7), np.uint8)
    image = preprocess(encoded(strip, "PNG"), spec_of(256, 224), max_pixels=LIMIT)
    assert (image.height, image.width) == shape
    assert (image.pixels == (9, 8, 7)).all()


def test_a_strip_is_cut_to_its_middle(spec: InputSpec) -> None:
    strip = np.zeros((2, 2000, 3), np.uint8)
    strip[:, 990:1010] = 255
    assert preprocess(encoded(strip, "PNG"), spec, max_pixels=LIMIT).pixels[0, :, 8:-8].min() == 255


# Formats and modes


@pytest.mark.parametrize("file_format", [*LOSSLESS, *LOSSY])
def test_every_accepted_format_gives_the_same_image(file_format: str, cat: Image.Image, spec: InputSpec) -> None:
    options = {**LOSSLESS, **LOSSY}[file_format]
    if file_format == "MPO":
        options = {**options, "save_all": True, "append_images": [Image.new("RGB", cat.size)]}
    image = preprocess(encoded(cat, file_format, **options), spec, max_pixels=LIMIT)
    assert (image.width, image.height, image.warnings) == (451, 300, ())
    # The shrunk GIF shows its palette, the shrunk JPEG next to nothing.
    assert far_apart(image.pixels[0], transform(cat, spec)) <= (0 if file_format in LOSSLESS else 4)


def test_the_formats_of_the_readme_are_accepted() -> None:
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= set(FORMATS)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(file_format: str, spec: InputSpec) -> None:
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    data = encoded(red, file_format, save_all=True, append_images=[blue])
    image = preprocess(data, spec, max_pixels=LIMIT)
    assert image.warnings == ("only the first frame counts",)
    assert far_apart(image.pixels[0], np.full((32, 32, 3), (255, 0, 0), np.uint8)) < 3


def stored_as(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What a camera stores with this EXIF orientation, by the definition of row 0 and column 0 in the standard."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(
    file_format: str, orientation: int, corners: NDArray[np.uint8], spec: InputSpec
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored_as(corners, orientation)), file_format, exif=exif)
    image = preprocess(data, spec, max_pixels=LIMIT)
    assert (image.width, image.height) == (60, 40)
    # Compression blurs the borders between the colours; a wrong turn is 60 grey levels off.
    assert far_apart(image.pixels[0], transform(Image.fromarray(corners), spec)) < 6


def test_the_warning_of_a_small_image_has_its_upright_size(spec: InputSpec) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert preprocess(encoded(np.zeros((8, 8, 3), np.uint8), "PNG"), spec, max_pixels=LIMIT).warnings == (
        "upscaled from 8x8",
    )
    lying = encoded(np.zeros((8, 20, 3), np.uint8), "PNG", exif=exif)
    assert preprocess(lying, spec, max_pixels=LIMIT).warnings == ("upscaled from 8x20",)


def test_an_image_of_exactly_the_side_is_not_called_upscaled(spec: InputSpec) -> None:
    assert preprocess(encoded(np.zeros((32, 32, 3), np.uint8), "PNG"), spec, max_pixels=LIMIT).warnings == ()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"]
)
def test_damaged_exif_does_not_cost_the_image(
    file_format: str, exif: bytes, corners: NDArray[np.uint8], spec: InputSpec
) -> None:
    plain = preprocess(encoded(corners, file_format), spec, max_pixels=LIMIT)
    image = preprocess(encoded(corners, file_format, exif=exif), spec, max_pixels=LIMIT)
    assert np.array_equal(image.pixels, plain.pixels)


def test_the_library_leaves_pillows_limit_and_the_warning_filters_alone(corners: NDArray[np.uint8]) -> None:
    data = encoded(corners, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    script = (
        "import sys, warnings\n"
        "from PIL import Image\n"
        "import numpy, pydantic  # they set filters of their own\n"
        "before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)\n"
        "import model\n"
        "from model.card import InputSpec\n"
        "assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before\n"
        "spec = InputSpec(resize=32, crop=32, interpolation='bilinear', mean=(0., 0., 0.), std=(1., 1., 1.))\n"
        "print(model.preprocess(sys.stdin.buffer.read(), spec, max_pixels=10**6).width)\n"
        "assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=False)
    assert done.stdout.split() == [b"60"], done.stderr
    assert b"Corrupt EXIF" in done.stderr, "there was something to warn of"


def test_pillows_own_limit_does_not_hold(spec: InputSpec) -> None:
    script = (
        "import sys\n"
        "from PIL import Image\n"
        "import model\n"
        "from model.card import InputSpec\n"
        "Image.MAX_IMAGE_PIXELS = 10\n"
        "spec = InputSpec(resize=32, crop=32, interpolation='bilinear', mean=(0., 0., 0.), std=(1., 1., 1.))\n"
        "print(model.preprocess(sys.stdin.buffer.read(), spec, max_pixels=10**6).width)\n"
    )
    data = encoded(np.zeros((32, 32, 3), np.uint8), "PNG")
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], input=data, capture_output=True, check=False)
    assert done.stdout.split() == [b"32"], done.stderr


def colour_of(data: bytes) -> tuple[int, ...]:
    """Of the middle."""
    (pixels,) = preprocess(data, spec_of(8, 8), max_pixels=LIMIT).pixels
    return tuple(int(value) for value in pixels[4, 4])


def test_palette_images_keep_their_colours(corners: NDArray[np.uint8], spec: InputSpec) -> None:
    palette = Image.fromarray(corners).quantize(8)
    assert palette.mode == "P"
    image = preprocess(encoded(palette, "PNG"), spec, max_pixels=LIMIT)
    # Resized after the colours are looked up: mixtures of palette entries would be nonsense.
    assert np.array_equal(image.pixels[0], transform(Image.fromarray(corners), spec))


def test_grey_and_bilevel_images_become_rgb() -> None:
    assert colour_of(encoded(Image.new("L", (9, 9), 77), "PNG")) == (77, 77, 77)
    assert colour_of(encoded(Image.new("1", (9, 9), 1), "PNG")) == (255, 255, 255)


def test_transparency_shows_white() -> None:
    assert colour_of(encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 128)), "PNG")) == (255, 127, 127)
    assert colour_of(encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 0)), "WEBP", exact=True)) == (255, 255, 255)
    assert colour_of(encoded(Image.new("LA", (9, 9), (0, 51)), "PNG")) == (204, 204, 204)


def test_a_transparent_palette_entry_shows_white() -> None:
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    assert colour_of(encoded(palette, "PNG", transparency=2)) == (10, 20, 30)
    assert colour_of(encoded(palette, "PNG", transparency=1)) == (255, 255, 255)
    assert colour_of(encoded(palette, "GIF", transparency=1)) == (255, 255, 255)
    assert colour_of(encoded(palette, "PNG", transparency=bytes([255, 51, 255]))) == (206, 208, 210)
    assert colour_of(encoded(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(file_format: str) -> None:
    red = colour_of(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), file_format))
    assert red == pytest.approx((255, 0, 0), abs=4)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 256, axis=0)
    (pixels,) = preprocess(encoded(ramp, "PNG"), spec_of(256, 256), max_pixels=LIMIT).pixels
    assert np.array_equal(pixels[0, :, 0], np.arange(256))
    dark = np.full((9, 9), 257, np.uint16)  # a dark image stays dark
    assert colour_of(encoded(dark, "PNG")) == (1, 1, 1)


def test_wide_integers_and_floats_are_read_by_their_range() -> None:
    assert colour_of(encoded(np.full((9, 9), 200, np.int32), "TIFF")) == (200, 200, 200)
    assert colour_of(encoded(np.full((9, 9), 2**24, np.int32), "TIFF")) == (255, 255, 255)
    assert colour_of(encoded(np.full((9, 9), 0.2, np.float32), "TIFF")) == (51, 51, 51)
    assert colour_of(encoded(np.full((9, 9), 51, np.float32), "TIFF")) == (51, 51, 51)
    assert colour_of(encoded(np.full((9, 9), np.nan, np.float32), "TIFF")) == (0, 0, 0)
    assert colour_of(encoded(np.full((9, 9), np.finfo(np.float32).min, np.float32), "TIFF")) == (0, 0, 0)


def test_a_large_jpeg_is_decoded_small_and_still_looks_the_same(cat: Image.Image, spec: InputSpec) -> None:
    large = cat.resize((451 * 6, 300 * 6), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=90)
    image = preprocess(data, spec, max_pixels=LIMIT)
    full = transform(Image.open(io.BytesIO(data)), spec)
    assert (image.width, image.height) == large.size
    assert not np.array_equal(image.pixels[0], full), "decoded in full, which is slow"
    assert far_apart(image.pixels[0], full) < 1
    assert np.abs(image.pixels[0].astype(int) - full).max() < 12


# Views


def test_one_view_is_the_exact_test_transform_of_every_size(spec: InputSpec) -> None:
    for width, height in [(1, 1), (32, 32), (31, 200), (64, 64), (451, 300), (700, 900)]:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        expected = transform(Image.fromarray(noise), spec)
        data = encoded(noise, "PNG")
        assert np.array_equal(preprocess(data, spec, max_pixels=LIMIT).pixels, expected[None])
        for count in (1, 2, MAX_VIEWS):
            image = preprocess(data, spec, max_pixels=LIMIT, views=count)
            assert np.array_equal(image.pixels[0], expected), "more views leave the first as it is"


@pytest.mark.parametrize("count", range(1, MAX_VIEWS + 1))
def test_an_image_has_the_requested_number_of_views(count: int, cat_png: bytes, spec: InputSpec) -> None:
    every = preprocess(cat_png, spec, max_pixels=LIMIT, views=MAX_VIEWS).pixels
    pixels = preprocess(cat_png, spec, max_pixels=LIMIT, views=count).pixels
    assert pixels.shape == (count, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, every[:count]), "fewer views are the first ones"


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [
        *((63, 400, 1), (400, 63, 1), (63, 63, 1), (32, 32, 1), (5, 5, 1)),
        *((64, 64, 2), (300, 300, 2), (329, 300, 2), (300, 329, 2)),
        *((330, 300, MAX_VIEWS), (300, 330, MAX_VIEWS), (64, 400, MAX_VIEWS)),
    ],
)
def test_a_small_image_has_one_view_and_a_nearly_square_one_has_two(
    width: int, height: int, count: int, spec: InputSpec
) -> None:
    data = encoded(np.zeros((height, width, 3), np.uint8), "PNG")
    for views in range(1, MAX_VIEWS + 1):
        assert len(preprocess(data, spec, max_pixels=LIMIT, views=views).pixels) == min(views, count)


# Left, top, right, bottom of the views after the first, of an image of 240 x 160 and of one of 160 x 240 pixels.
LYING = [(0, 0, 240, 160), (80, 40, 160, 120), (0, 0, 160, 160), (80, 0, 240, 160)]
STANDING = [(0, 0, 160, 240), (40, 80, 120, 160), (0, 0, 160, 160), (0, 80, 160, 240)]


@pytest.mark.parametrize("scale", [0.5, 1, 3], ids=["as it is", "reduced a little", "reduced much"])
@pytest.mark.parametrize("boxes", [LYING, STANDING], ids=["lying", "standing"])
@pytest.mark.parametrize("crop", [32, 28])
def test_the_views_show_the_parts_that_they_are_to_show(
    scale: float, boxes: list[tuple[int, int, int, int]], crop: int
) -> None:
    _, _, width, height = (round(side * scale) for side in boxes[0])
    colours = np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (250, 250, 10)]], np.uint8)
    image = colours.repeat(height // 2, axis=0).repeat(width // 2, axis=1)
    pixels = preprocess(encoded(image, "PNG"), spec_of(32, crop), max_pixels=LIMIT, views=MAX_VIEWS).pixels
    assert len(pixels) == 1 + len(boxes)
    centres = (np.arange(crop) + 0.5) / crop
    for view, box in zip(pixels[1:], boxes, strict=True):
        left, top, right, bottom = (side * scale for side in box)
        columns = left + centres * (right - left) - width / 2  # from the border between the colours
        rows = top + centres * (bottom - top) - height / 2
        expected = colours[(rows > 0).astype(int)[:, None], (columns > 0).astype(int)]
        clear = (np.abs(rows) > 1.6 * (bottom - top) / crop)[:, None] & (np.abs(columns) > 1.6 * (right - left) / crop)
        assert clear.mean() > 0.7
        assert np.abs(view.astype(int) - expected)[clear].max() <= 3, box


def spotted(width: int, height: int, box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """A white image with a black spot in the middle of a box, a sixth of its side wide."""
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    across = (np.arange(width) + 0.5 - x)[None] / (right - left)
    down = (np.arange(height) + 0.5 - y)[:, None] / (bottom - top)
    shade = 255 * np.clip((np.hypot(across, down) - 1 / 12) * min(right - left, bottom - top) + 0.5, 0, 1)
    spot: NDArray[np.uint8] = shade.astype(np.uint8)[..., None].repeat(3, axis=2)
    return spot


def off_the_middle(view: NDArray[np.uint8]) -> tuple[float, float]:
    """How far the middle of what is dark lies from the middle of a view, across and down, in its pixels."""
    dark = 255 - view[..., 0].astype(float)
    places = np.arange(len(view)) + 0.5 - len(view) / 2
    assert dark.sum() > 255, "there is a spot"
    return abs(dark.sum(0) @ places) / dark.sum(), abs(dark.sum(1) @ places) / dark.sum()


# The larger are decoded at 1/2 and 1/8, the largest with 7 of 8 pixels beyond their edges.
@pytest.mark.parametrize(
    "size", [(32, 32), (50, 41), (65, 97), (333, 451), (310, 301), (500, 273), (1033, 1545), (2049, 1041)], ids=str
)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (40, 33)])
def test_the_middle_of_a_box_is_the_middle_of_its_view(
    file_format: str, orientation: int, size: tuple[int, int], resize: int, crop: int
) -> None:
    spec, (width, height) = spec_of(resize, crop), size
    exif = Image.Exif()
    exif[0x0112] = orientation

    def prepared(upright: NDArray[np.uint8]) -> PreprocessedImage:
        options = {"quality": 95} if file_format == "JPEG" else {"compress_level": 1}
        data = encoded(np.ascontiguousarray(stored_as(upright, orientation)), file_format, exif=exif, **options)
        return preprocess(data, spec, max_pixels=LIMIT, views=MAX_VIEWS)

    boxes = prepared(np.zeros((height, width, 3), np.uint8)).boxes
    assert len(boxes) == (1 if min(size) < 2 * resize else 2 if size == (310, 301) else MAX_VIEWS)
    for number, box in enumerate(boxes):
        image = prepared(spotted(width, height, box))
        assert image.boxes == boxes
        for axis, off in enumerate(off_the_middle(image.pixels[number])):
            # A view that goes to the edge of a reduced JPEG shows up to 7 pixels beyond it, which its box leaves out.
            at_edge = box[axis] == 0 or box[2 + axis] == size[axis]
            assert off < (0.15 if file_format == "JPEG" and at_edge else 0.05), (number, axis)


def test_the_box_of_a_strip_is_its_middle(spec: InputSpec) -> None:
    for shape in ((5, 500), (500, 5)):
        boxes = preprocess(encoded(np.zeros((*shape, 3), np.uint8), "PNG"), spec, max_pixels=LIMIT).boxes
        expected = (247.5, 0, 252.5, 5) if shape[0] == 5 else (0, 247.5, 5, 252.5)
        assert boxes[0] == pytest.approx(expected, abs=0.51)


def test_the_boxes_are_those_of_the_documented_views(spec: InputSpec) -> None:
    lying, standing, square = (
        preprocess(encoded(np.zeros((*shape, 3), np.uint8), "PNG"), spec, max_pixels=LIMIT, views=MAX_VIEWS).boxes
        for shape in ((160, 240), (240, 160), (160, 160))
    )
    assert list(lying) == [pytest.approx(box) for box in [(40, 0, 200, 160), *LYING]]
    assert list(standing) == [pytest.approx(box) for box in [(0, 40, 160, 200), *STANDING]]
    assert list(square) == [pytest.approx(box) for box in [(0, 0, 160, 160), (40, 40, 120, 120)]]


@pytest.mark.parametrize(("file_format", "factor"), [("PNG", 2), ("PNG", 5), ("JPEG", 2), ("JPEG", 6)])
def test_a_larger_image_has_the_same_views(
    file_format: str, factor: int, cat: Image.Image, cat_png: bytes, spec: InputSpec
) -> None:
    expected = preprocess(cat_png, spec, max_pixels=LIMIT, views=MAX_VIEWS).pixels
    options = {"quality": 90} if file_format == "JPEG" else {"compress_level": 1}
    larger = cat.resize((cat.width * factor, cat.height * factor), Image.Resampling.BICUBIC)
    found = preprocess(encoded(larger, file_format, **options), spec, max_pixels=LIMIT, views=MAX_VIEWS).pixels
    assert found.shape == expected.shape
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert far_apart(one, other) < (3 if file_format == "JPEG" else 2), number


def test_a_large_image_is_averaged_and_not_skipped_over(spec: InputSpec) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 720, 3), np.uint8)
    first, *others = preprocess(encoded(noise, "PNG"), spec, max_pixels=LIMIT, views=MAX_VIEWS).pixels
    assert first.std() < 8
    for view in others:
        assert abs(view.mean() - first.mean()) < 1
        assert view.std() < 8


def test_the_views_of_a_turned_image_are_those_of_the_upright_one(spec: InputSpec, cat: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.ascontiguousarray(stored_as(np.asarray(cat), 6)), "PNG", exif=exif)
    upright = preprocess(encoded(cat, "PNG"), spec, max_pixels=LIMIT, views=MAX_VIEWS)
    assert np.array_equal(preprocess(turned, spec, max_pixels=LIMIT, views=MAX_VIEWS).pixels, upright.pixels)


# Refusals


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_announcing(width: int, height: int) -> bytes:
    """A PNG with next to no data behind its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def jpeg_announcing(width: int, height: int) -> bytes:
    data = encoded(np.zeros((16, 16, 3), np.uint8), "JPEG")
    return data.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", height, width), 1)


def bmp_announcing(width: int, height: int) -> bytes:
    data = encoded(np.zeros((16, 16, 3), np.uint8), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def gif_with_a_frame_of(width: int, height: int) -> bytes:
    """Its logical screen is 1 x 1; the frame outgrows it."""
    return b"GIF89a\x01\0\x01\0\x80\0\0" + b"\0" * 6 + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\0;"


@pytest.mark.parametrize("announcing", [png_announcing, jpeg_announcing, bmp_announcing, gif_with_a_frame_of])
@pytest.mark.parametrize(
    ("width", "height"),
    [(7_072, 7_072), (10_000, 10_000), (14_000, 14_000), (60_000, 60_000)],
    ids=["just over", "where Pillow would warn", "where Pillow would raise", "3.6 gigapixels"],
)
def test_pixels_over_the_limit_are_refused_by_the_header_alone(
    announcing: Any, width: int, height: int, spec: InputSpec
) -> None:
    with pytest.raises(ImageTooLarge, match=f"{width} x {height} pixels, more than 50,000,000: upload a smaller one"):
        preprocess(announcing(width, height), spec, max_pixels=LIMIT)


def test_the_limit_itself_is_accepted(spec: InputSpec) -> None:
    data = encoded(np.zeros((30, 50, 3), np.uint8), "PNG")
    assert preprocess(data, spec, max_pixels=1500).width == 50
    with pytest.raises(ImageTooLarge):
        preprocess(data, spec, max_pixels=1499)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, this is no image at all",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n",
        b"P6 2 2 255\n" + bytes(12),
        encoded(Image.new("RGB", (16, 16)), "ICO"),
        encoded(Image.new("RGB", (16, 16)), "JPEG2000"),
    ],
    ids=["nothing", "a null", "text", "svg", "pdf", "ppm", "ico", "jpeg 2000"],
)
def test_the_error_of_an_unsupported_format_lists_the_accepted_ones(data: bytes, spec: InputSpec) -> None:
    with pytest.raises(UnsupportedImage, match=r"(upload|convert it to one of) JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        preprocess(data, spec, max_pixels=LIMIT)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_truncated_image_is_unreadable(file_format: str, kept: float, cat: Image.Image, spec: InputSpec) -> None:
    data = encoded(cat, file_format)
    with pytest.raises(UnreadableImage, match=r"upload it again$"):
        preprocess(data[: int(len(data) * kept)], spec, max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff\xe0\0\x10JFIF", b"GIF89a", b"BM", b"II*\0\xff\xff\xff\xff"],
    ids=["png", "jpeg", "gif", "bmp", "tiff"],
)
def test_a_damaged_header_is_unreadable_not_unsupported(data: bytes, spec: InputSpec) -> None:
    with pytest.raises(UnreadableImage, match="header is damaged"):
        preprocess(data, spec, max_pixels=LIMIT)


@pytest.mark.parametrize("file_format", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_mutated_files_raise_nothing_but_image_errors(file_format: str, spec: InputSpec) -> None:
    dice = random.Random(file_format)
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.fromarray(skimage.data.chelsea()[100:124, 100:140])  # type: ignore[no-untyped-call]
    if file_format in ("GIF", "PNG"):
        small = small.quantize(16)
    options: dict[str, Any] = {} if file_format in ("BMP", "GIF") else {"exif": exif}
    if file_format in ("MPO", "GIF", "WEBP"):
        options |= {"save_all": True, "append_images": [small.rotate(90)]}
    original = encoded(small, file_format, **options)
    outcomes = set[type]()
    for _ in range(250):
        data = bytearray(original)
        for _ in range(dice.choice((1, 1, 2, 8))):
            where = dice.randrange(min(len(data), dice.choice((64, 10_000))))
            match dice.randrange(4):
                case 0:
                    data[where] = dice.randrange(256)
                case 1:
                    data[where] ^= 1 << dice.randrange(8)
                case 2:
                    del data[where : where + dice.randrange(1, 9)]
                case 3:
                    data[where:where] = dice.randbytes(dice.randrange(1, 9))
        try:
            image = preprocess(bytes(data), spec, max_pixels=1_000_000)
        except ImageError as error:
            outcomes.add(type(error))
        else:
            outcomes.add(type(image))
            assert image.pixels.shape == (1, 32, 32, 3)
    assert len(outcomes) > 1, "mutations that all end alike are too weak or too strong"
