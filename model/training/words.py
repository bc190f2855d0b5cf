"""Numbers in messages."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 image", "1,000 images"."""
    return f"{count:,} {noun}" + "s" * (count != 1)
