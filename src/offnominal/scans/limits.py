"""What a header may claim, before memory is taken for it."""

from pathlib import Path

from offnominal.errors import ImageError

__all__ = ["MAX_POINTS", "check_claim"]

MAX_POINTS = 30_000_000
"""Scans that declare more points than this are refused before they are read."""

_PACKED = 1100  # no compression of these formats makes a file smaller than that


def check_claim(
    path: Path, what: str, points: int, claimed: int, there: int, *, packed: bool = False
) -> None:
    """Hold what a header claims against the size of what follows it.

    Parameters
    ----------
    path : Path
    what : str
        Points or pixels, for the message.
    points : int
        That the header claims.
    claimed : int
        Bytes of them.
    there : int
        Bytes that are there.
    packed : bool
        Whether they are compressed.

    Raises
    ------
    ImageError
        If there are none, more than `MAX_POINTS`, or more than the file can hold.
    """
    if points < 1 or claimed < 1:
        raise ImageError(path, f"holds no {what}; export it again, or leave it out")
    if points > MAX_POINTS:
        reason = f"declares {points:,} {what}; the limit is {MAX_POINTS / 1e6:g} million: thin it"
        raise ImageError(path, f"{reason} out, or cut it into parts")
    if claimed > there * (_PACKED if packed else 1):
        raise ImageError(
            path,
            f"is truncated or damaged (its header declares {claimed:,} bytes of {what}, and "
            f"{there:,} follow); copy or export it again",
        )
