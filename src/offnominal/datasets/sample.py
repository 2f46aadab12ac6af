"""One image of a data set, with what is known about it."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes
    ----------
    image : Path
        The image file.
    label : int
        0 for a good part, 1 for a defective one. It comes from the folder, never from the mask:
        real data sets hold defective images whose mask is empty.
    mask : Path or None
        The ground-truth mask of the image's size, or a folder of several whose union counts, or
        None where there is none.
    defect : str
        Kind of defect, as the folder is named; ``good`` for a good part.
    category : str
        The kind of object or texture, as its folder is named.
    split : str
        ``train`` or ``test``; ``validation`` where a data set keeps good images apart for that.
    mask_threshold : int, default 128
        Smallest grey level of the mask, of 0 to 255, that means defective; 1 where masks hold
        class numbers.
    """

    image: Path
    label: int
    mask: Path | None
    defect: str
    category: str
    split: str
    mask_threshold: int = 128
