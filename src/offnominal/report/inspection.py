"""The results page: what `predict` wrote into a folder, as a page that opens from disk."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from offnominal.captions import layout
from offnominal.metrics.kinds import UNNAMED
from offnominal.paths import RESULTS_MARK
from offnominal.report.drift import drift
from offnominal.report.page import write
from offnominal.report.words import count
from offnominal.text import apart, printable

__all__ = ["write_inspection"]

Row = Mapping[str, Any]  # a line of results.jsonl, with the image's name to the byte in `name`

_NANOSECONDS = re.compile(r"(\d+) ns$")
_QUICKEST = 0.02  # seconds between two images of a camera; files are copied in less
_LISTED = 200  # images that could not be read


def write_inspection(
    folder: Path, rows: Sequence[Row], about: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write ``index.html`` into a folder of results: counts, charts, and every image.

    The pictures stay the files that they are, thumbnails and overlays beside the page and images
    where they lie: the page of ten thousand images is a few megabytes.

    Parameters
    ----------
    folder : Path
        Holds the pictures that the rows name.
    rows : sequence of mappings
        As in ``results.jsonl``: of images, and of those that could not be read.
    about : sequence of (str, str)
        What the results were made with: titles and words.

    Raises
    ------
    OptionError
        If the page cannot be written.
    """
    scored, unread = _told_once(rows)
    limit = next((row["threshold"] for row in scored if row["threshold"] is not None), None)
    times = _times(scored)
    places = Counter(os.path.split(_absolute(row))[0] for row in scored)
    folders = sorted(places)
    common = os.path.commonpath(folders) if len(folders) > 1 and _one_drive(folders) else ""
    index = {place: number for number, place in enumerate(folders)}
    sizes = {(row["height"], row["width"]) for row in scored}
    return write(
        folder / "index.html",
        "inspection.html.j2",
        "Inspection results",
        _headline(scored, len(unread)),
        results_mark=RESULTS_MARK,
        about=list(about),
        unread=[(row["name"], row["error"]) for row in unread[:_LISTED]],
        unread_count=len(unread),
        drift=_drift_words(scored, times, limit),
        missing=_missing_words(scored),
        classes=_classes(scored),
        data={
            "limit": limit,
            "timed": times is not None,
            "classes": sorted({kind for row in scored if (kind := _kind(row))}),
            "separator": os.sep,
            "folders": folders,
            "shown": [printable(os.path.relpath(f, common) if common else f) for f in folders],
            "layouts": {f"{h}x{w}": _boxes(h, w) for h, w in sorted(sizes)},
            "parts": [
                _part(folder, row, index, None if times is None else times[number])
                for number, row in enumerate(scored)
            ],
        },
    )


def _told_once(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The last row of each image that was scored, and of those that never could be."""
    last = {row["name"]: row for row in rows if "score" in row}
    unread = {row["name"]: row for row in rows if "error" in row and row["name"] not in last}
    return list(last.values()), list(unread.values())


def _headline(scored: Sequence[Row], unread: int) -> str:
    decisions = Counter(row["is_anomalous"] for row in scored)
    images, undecided = count(len(scored), "image"), decisions[None]
    if scored and undecided == len(scored):
        told = f"{images} scored. There is no threshold, so nothing is decided."
    else:
        told = f"{images}: {decisions[True]:,} rejected, {decisions[False]:,} passed."
        told += f" {undecided:,} without a decision." if undecided else ""
    return told + (f" {unread:,} more could not be read, and were not inspected." if unread else "")


def _kind(row: Row) -> str | None:
    """The class of the defect of an image that was rejected, where one is told."""
    kind = row.get("kind")
    return printable(kind) if isinstance(kind, str) and row["is_anomalous"] is not False else None


def _classes(scored: Sequence[Row]) -> list[tuple[list[str], list[str]]]:
    """A row for each class: how many images were rejected for it, and how sure that was.

    Empty where no class was told of any.
    """
    found: dict[str, list[float]] = {}
    for row in scored:
        if row["is_anomalous"] and (kind := _kind(row)):
            sure = row.get("kinds")
            value = sure.get(row["kind"]) if isinstance(sure, dict) else None
            found.setdefault(kind, []).append(value if isinstance(value, float | int) else 0.0)
    without = sum(row["is_anomalous"] is True and not _kind(row) for row in scored)
    rows = [
        ([kind], [f"{len(values):,}", f"{100 * sum(values) / len(values):.0f} %"])
        for kind, values in sorted(found.items())
    ]
    if rows and without:
        rows.append(([UNNAMED], [f"{without:,}", "–"]))
    return rows


def _times(scored: Sequence[Row]) -> list[float] | None:
    """When each file was written, in seconds; None where that tells no order, as after a copy."""
    found = [_NANOSECONDS.search(str(row.get("file", ""))) for row in scored]
    times = [int(match[1]) / 1e9 for match in found if match]
    if not times or len(times) < len(scored) or 2 * len(set(times)) < len(times):
        return None
    return times if max(times) - min(times) > _QUICKEST * len(times) else None


def _drift_words(scored: Sequence[Row], times: list[float] | None, limit: float | None) -> str:
    """What the trend says of parts that passed: rejects come in lots, and are no drift."""
    order = list(range(len(scored)))
    if times is not None:
        order.sort(key=lambda number: times[number])
    scores = [scored[n]["score"] for n in order if scored[n]["is_anomalous"] is not True]
    if not (found := drift(scores)):
        return ""
    what, many = ("passed" if limit is not None else "were scored"), f"{found.images:,}"
    first, last = apart(found.first, found.last)
    way = "upwards" if found.last > found.first else "downwards"
    said = f"Scores drift {way}" if times else f"In the order of the run, scores drift {way}"
    return (
        f"{said}: of the images that {what}, the first {many} have the median {first}, "
        f"the last {many} {last}. Look whether light, camera or material changed."
    )


def _missing_words(scored: Sequence[Row]) -> str:
    """How much of the scans was not measured; empty where none of the images is a scan."""
    told = [row for row in scored if isinstance(row.get("missing_points"), int)]
    shares = [(r["missing_points"] / (r["height"] * r["width"]), r["name"]) for r in told]
    if not shares:
        return ""
    most, name = max(shares)
    where = printable("/".join(Path(name).parts[-3:]))
    middle = sorted(share for share, _ in shares)[len(shares) // 2]
    return (
        f"Of {count(len(shares), 'scan')}, {100 * middle:.1f} % of the pixels were not measured "
        f"(median), and {100 * most:.1f} % at most, in {where}."
    )


def _part(folder: Path, row: Row, index: Mapping[str, int], time: float | None) -> list[Any]:
    """What the page's script knows of an image, in the order in which it reads it."""
    absolute = _absolute(row)
    place, name = os.path.split(absolute)
    shown = printable(name)
    first = next(iter(row["regions"]), None)
    return [
        shown,
        index[place],
        _link(absolute, folder),
        *(quote(row[kind]) if kind in row else "" for kind in ("thumbnail", "overlay", "mask")),
        float(f"{row['score']:.9g}"),
        {True: 1, False: 0, None: -1}[row["is_anomalous"]],
        row.get("p_value"),
        None if time is None else round(time),
        f"{row['height']}x{row['width']}",
        len(row["regions"]),
        first.get("peak_at") if first else None,
        # By which opinions are told apart: the file may change, and be another part.
        row.get("file", ""),
        # To name it in a file of opinions, where what is shown is not what it is called.
        None if printable(absolute) == absolute else os.fsencode(absolute).hex(),
        _kind(row),
        quote(row["cloud"].removesuffix(".ply")) if row.get("cloud") else "",
        row.get("missing_points"),
    ]


def _link(image: str, folder: Path) -> str:
    """Where the page finds the image: a path from its folder, or from the root of a drive."""
    here = os.path.abspath(folder)  # noqa: PTH100 (links stay)
    try:
        way = str(os.path.relpath(image, here))
    except ValueError:  # another drive of Windows
        return Path(image).as_uri()
    return quote(os.fsencode(way.replace(os.sep, "/")))


def _absolute(row: Row) -> str:
    return os.path.abspath(str(row["name"]))  # noqa: PTH100 (links stay)


def _one_drive(folders: Sequence[str]) -> bool:
    return len({os.path.splitdrive(one)[0] for one in folders}) == 1


def _boxes(height: int, width: int) -> list[int]:
    """Where an overlay's file has the image and the heat: its size, and both boxes."""
    plan = layout(height, width)
    return [*plan.size, *plan.image, *plan.heat]
