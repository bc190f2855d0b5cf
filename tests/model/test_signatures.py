"""Formats that are not accepted are named."""

import pytest

from model import UnsupportedImage
from model.decode import decode
from model.signatures import describe


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\xff\x0a\xfa\x7f", "a JPEG XL image"),
        (b"PK\x03\x04\x14\0", "a ZIP archive or an office document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"cat", None),
        (b"", None),
    ],
)
def test_the_format_is_found_by_the_first_bytes(start: bytes, name: str | None) -> None:
    assert describe(start) == name


def test_an_unsupported_file_is_refused_by_the_name_of_its_format() -> None:
    with pytest.raises(
        UnsupportedImage, match="this is a PDF document, which is not accepted: convert it to one of JPEG"
    ):
        decode(b"%PDF-1.7\n" + bytes(100), side=32, max_pixels=1_000_000)
