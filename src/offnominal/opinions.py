"""What a person noted of inspected images on the results page, as the file that it saves."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offnominal.errors import OptionError
from offnominal.paths import is_elsewhere
from offnominal.text import printable

__all__ = ["Noted", "sort_out"]

_LARGEST = 2**28  # bytes: a million images


class _Opinion(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str | None = None
    image_bytes: Annotated[str, Field(pattern="^([0-9a-f]{2})+$")] | None = None
    opinion: Literal["accept", "reject"]

    def path(self) -> str:
        if self.image_bytes is not None:
            return os.fsdecode(bytes.fromhex(self.image_bytes))
        if self.image is None:
            raise ValueError("an opinion names no image")
        return self.image


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    format: Literal["offnominal opinions 1"]
    inspected: Annotated[int, Field(ge=0)]
    opinions: list[_Opinion]


@dataclass
class Noted:
    """Names of images, those that opinions speak of among them.

    Attributes
    ----------
    good : list of str
        Named directly, or noted as good.
    defective : list of str
        Noted as to be rejected.
    noted, inspected : int
        How many images have an opinion, and of how many that were inspected.
    """

    good: list[str] = field(default_factory=list)
    defective: list[str] = field(default_factory=list)
    noted: int = 0
    inspected: int = 0


def sort_out(names: Iterable[str]) -> Noted:
    """Files, folders and patterns as they are; in place of files of opinions what they name.

    Raises
    ------
    OptionError
        If a file ends in ``.json`` and holds no opinions, names an image that is not there, or one
        that was given another opinion before.
    """
    found, said = Noted(), dict[str, str]()
    for name in names:
        if not (name.lower().endswith(".json") and Path(name).is_file()):
            found.good.append(name)
            continue
        told = _read(name)
        found.noted += len(told.opinions)
        found.inspected += told.inspected
        for one in told.opinions:
            path = one.path()
            if one.opinion != said.setdefault(path, one.opinion):
                raise OptionError(f"{name}: {printable(path)} is noted as good and as a reject")
            if is_elsewhere(path) or not Path(path).is_file():
                raise OptionError(
                    f"{name}: speaks of {printable(path)}, which is not there; put the image back, "
                    "or note opinions on a page of images where they lie"
                )
            (found.good if one.opinion == "accept" else found.defective).append(path)
    return found


def _read(name: str) -> _File:
    try:
        if Path(name).stat().st_size > _LARGEST:
            raise ValueError("too large")
        told = _File.model_validate(json.loads(Path(name).read_text("utf-8")))
        for one in told.opinions:
            one.path()
    except OSError as error:
        raise OptionError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (ValueError, ValidationError, RecursionError) as error:
        raise OptionError(
            f"{name}: is no file of opinions, as the results page of `offnominal predict -o` saves "
            "them, and no image; name images, or folders of them"
        ) from error
    return told
