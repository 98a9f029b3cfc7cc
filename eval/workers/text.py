"""Text that can be written as UTF-8, whatever a model answered."""


def whole(text: str) -> str:
    """``text`` with U+FFFD for each half of a surrogate pair that lacks the other; two that meet become their sign."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
