"""Names of file formats that are often uploaded and not accepted, from the first bytes of a file."""

# Brands of an ISO base media file (ISO/IEC 14496-12), at byte 8 after the box type "ftyp".
_BRANDS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"crx ": "a raw image of a camera",
}
_STARTS = (
    (b"%PDF-", "a PDF document"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
)
# Within so many bytes the root element of an SVG or HTML file is looked for.
_TEXT = 1024


def describe(data: bytes) -> str | None:
    """What a file is, such as "a PDF document", or None for an unknown format.

    Args:
        data: the file.
    """
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    text = data[:_TEXT].lower()
    if b"<svg" in text:
        return "an SVG drawing"
    if b"<html" in text or b"<!doctype html" in text:
        return "a web page"
    return None
