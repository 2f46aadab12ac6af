"""Pascal VOC's XML: one file for each image, with boxes, and polygons in some exports."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from offnominal.errors import DatasetError
from offnominal.labels.formats.entry import Drawn, Entry, Problem, Tell

__all__ = ["parse", "read"]


def parse(file: Path) -> Element:
    """The root of an XML file, in which nothing is declared: no entity can grow, or name a file.

    Raises
    ------
    DatasetError
        If it cannot be read, or declares a document type.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise DatasetError(f"{file}: declares a document type, which annotations do not need")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name, attributes) and None
    parser.EndElementHandler = lambda name: builder.end(name) and None
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(file.read_bytes(), True)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    except expat.ExpatError as error:
        raise DatasetError(f"{file}: is no XML ({error}); export it again") from error
    return builder.close()


def read(file: Path, called: str, root: Element, tell: Tell) -> Entry:
    """What a file says of its image. ``called`` is what messages call the file."""
    name = (root.findtext("filename") or "").strip()
    entry = Entry(called, tuple(filter(None, (name, file.stem))), folder=file.parent)
    try:
        size = [_number(root, f"size/{side}") for side in ("height", "width")]
        entry.size = (int(size[0]), int(size[1])) if all(size) else None
    except ValueError:
        pass  # many tools leave it out
    for number, thing in enumerate(root.iterfind("object"), 1):
        where = f"{called}, object {number}"
        try:
            entry.drawn.append(_drawn(thing, where))
        except ValueError as error:
            tell(Problem(where, str(error), "correct it, or export the annotations again"))
    return entry


def _drawn(thing: Element, where: str) -> Drawn:
    kind = (thing.findtext("name") or "").strip()
    if (polygon := thing.find("polygon")) is not None:
        count = len(polygon.findall("*")) // 2
        points = [[_number(polygon, f"{axis}{n}") for axis in "xy"] for n in range(1, count + 1)]
        if count < 3:
            raise ValueError(f"a polygon of {count} points; three are needed")
        return Drawn(where, kind, polygons=(np.array(points),))
    left, top, right, bottom = (
        _number(thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    # The first pixel is number 1 there, and the last one belongs to the box.
    return Drawn(where, kind, (left - 1, top - 1, right - left + 1, bottom - top + 1))


def _number(element: Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"has no {path}")
    value = float(text)
    if not np.isfinite(value):
        raise ValueError(f"{path} is {text}")
    return value
