"""Why a part was not inspected: codes that programs read, and words beside them."""

__all__ = ["REASONS", "code_of", "reason"]

REASONS = {
    "unreadable": "the picture cannot be read",
    "no-picture": "the source delivered no picture",
    "no-product": "nothing says which product it is",
    "no-model": "the product has no live version",
    "model": "the model cannot be used",
    "no-threshold": "the model has no threshold",
    "timeout": "the deadline passed",
    "worker": "two workers ended while they judged it",
    "failed": "judging failed",
    "dark": "the picture is darker than the references",
    "bright": "the picture is brighter than the references, or overexposed",
    "blurred": "the picture is less sharp than the references",
    "frozen": "the source repeats one picture",
    "moved": "the picture shows something else than the references, or elsewhere",
    "size": "the picture has another size than the references",
}
"""What each code means, in English words."""

_LONGEST = 300  # of the column


def reason(code: str, detail: str = "") -> str:
    """A code of :data:`REASONS`, then words: ``timeout: the deadline passed``."""
    words = REASONS[code]
    return f"{code}: {words} ({detail})"[:_LONGEST] if detail else f"{code}: {words}"


def code_of(told: str) -> str:
    """The code at the beginning of what :func:`reason` gave; empty of what was inspected."""
    return told.partition(":")[0]
