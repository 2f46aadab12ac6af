"""Where in its folder a station keeps what."""

import hashlib
import os
from pathlib import Path

from offnominal.atomic import replacing
from offnominal.errors import OptionError

__all__ = ["Files"]


class Files:
    """Paths within the station's folder, and writing there for good.

    Parameters
    ----------
    folder : Path
        Made where it is missing, for its owner only.

    Raises
    ------
    OptionError
        If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OptionError(
                f"{folder}: cannot be the station's folder ({error.strerror}); name another"
            ) from error

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def model(self, product: int, number: int, suffix: str = ".offn") -> str:
        """Name, within the folder, of a version's file."""
        return f"models/{product}/{number}{suffix}"

    def references(self, product: int) -> Path:
        """The folder of a product's pictures of good parts."""
        return self.folder / "references" / str(product)

    def keep_picture(self, content: bytes, suffix: str) -> tuple[str, str]:
        """Keep a picture's bytes, on the disk when this returns.

        Returns
        -------
        tuple of str
            Its SHA-256, and its name within the folder, which follows from it: the same bytes are
            written once.
        """
        digest = hashlib.sha256(content).hexdigest()
        name = f"pictures/{digest[:2]}/{digest}{suffix}"
        path = self.folder / name
        try:
            # Wanted again just now: what clears away old pictures leaves new ones.
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        return digest, name
