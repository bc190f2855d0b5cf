"""Image files as text: base64 and data URLs."""

import binascii

_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# The characters of base64 that a data URL may have percent-encoded.
_PERCENT_ENCODED = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%2b": b"+", b"%2f": b"/", b"%3d": b"="}


def from_base64(text: str | bytes) -> bytes:
    """Decode base64 (RFC 4648) as clients write it, or a data URL (RFC 2397) with base64.

    Both alphabets are accepted, line breaks and spaces are ignored, and the padding may be left out.

    Raises:
        ValueError: it is neither.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    if data[:5].lower() == b"data:":
        head, _, data = data.partition(b",")
        if not head.lower().rstrip().endswith(b";base64"):
            raise ValueError("the data URL is not in base64")
        if b"%" in data:
            for code, character in _PERCENT_ENCODED.items():
                data = data.replace(code, character)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        plain = data.translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
