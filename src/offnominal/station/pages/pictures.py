"""Pictures of inspections: as they arrived, small, with their map, beside the nearest good part."""

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from offnominal.atomic import replacing
from offnominal.errors import ImageError, OffnominalError
from offnominal.station.access.who import Who, allowed
from offnominal.station.drawing import SHOWN, kind_of, map_of, thumbnail
from offnominal.station.language import _
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Inspection, PatchScores, Picture, Version

__all__ = ["router"]

router = APIRouter()

Operator = Annotated[Who, Depends(allowed("operator"))]
_KEEP = "private, max-age=31536000, immutable"  # what is inspected once never looks otherwise
_CACHE_FILES = 20_000  # drawn pictures that are kept
_DRAWING = "1"  # of drawn pictures: another one where they are drawn otherwise


class _Found:
    """What is needed of an inspection to show its picture."""

    def __init__(self, station: Station, inspection: int, with_scores: bool = False) -> None:
        with station.database.reading() as session:
            row = session.get(Inspection, inspection)
            if row is None:
                raise HTTPException(404, _("There is no such inspection."))
            picture = session.get(Picture, row.picture_id) if row.picture_id else None
            if picture is None:
                raise HTTPException(404, _("Its picture is not kept any more."))
            self.row, self.picture = row, picture
            self.version = session.get(Version, row.version_id) if row.version_id else None
            self.scores = session.get(PatchScores, inspection) if with_scores else None
        self.path = station.files / picture.file

    def content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise HTTPException(404, _("Its picture is not kept any more.")) from None


@router.get("/pictures/{inspection}/image")
def image(request: Request, inspection: int, station: Here, who: Operator) -> Response:
    """The bytes as they arrived."""
    found = _Found(station, inspection)
    tag = f'"{found.picture.digest}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag, "Cache-Control": _KEEP})
    content = found.content()
    kind = kind_of(content)
    headers = {"ETag": tag, "Cache-Control": _KEEP, "X-Content-Type-Options": "nosniff"}
    # What a browser would not show as a picture, it is to keep as a file, whatever is in it.
    way = "inline" if kind in SHOWN.values() else "attachment"
    name = f"{inspection}{Path(found.picture.file).suffix}"
    headers["Content-Disposition"] = f'{way}; filename="{name}"'
    return Response(content, media_type=kind, headers=headers)


@router.get("/pictures/{inspection}/thumbnail")
def small(request: Request, inspection: int, station: Here, who: Operator) -> Response:
    """A small JPEG."""
    found = _Found(station, inspection)
    name = f"thumbnails/{found.picture.digest}"
    return _drawn(request, station, name, lambda: thumbnail(found.path))


@router.get("/pictures/{inspection}/view")
def view(request: Request, inspection: int, station: Here, who: Operator) -> Response:
    """The picture for the eye, whatever kind of file it is, at 2048 pixels at most."""
    return _mapped(request, station, inspection, "view")


@router.get("/pictures/{inspection}/heat")
def heat(request: Request, inspection: int, station: Here, who: Operator) -> Response:
    """The picture with the heat of its map laid over it."""
    return _mapped(request, station, inspection, "heat")


@router.get("/pictures/{inspection}/outline")
def outline(request: Request, inspection: int, station: Here, who: Operator) -> Response:
    """The picture with what is wrong outlined."""
    return _mapped(request, station, inspection, "outline")


@router.get("/pictures/{inspection}/explain")
async def explain(request: Request, inspection: int, station: Here, who: Operator) -> Response:
    """Its worst patches beside the nearest ones of good parts; made when first asked for."""
    found = await run_in_threadpool(_Found, station, inspection)
    if found.version is None:
        raise HTTPException(404, _("No version of the model judged it."))
    name = f"cache/explain/{found.version.id}-{found.picture.digest}.png"
    path = station.files / name
    async with _explaining:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            given = {"model": found.version.file, "picture": found.picture.file, "file": name}
            try:
                await station.learner.run("explain", None, **given)
            except OffnominalError as error:
                raise HTTPException(422, str(error)) from error
    content = await run_in_threadpool(path.read_bytes)
    return _answer(request, content, "image/png", f'"{found.version.id}-{found.picture.digest}"')


_explaining = asyncio.Semaphore(1)


def _mapped(request: Request, station: Station, inspection: int, how: str) -> Response:
    found = _Found(station, inspection, with_scores=how != "view")
    sigma = float(found.version.facts["smoothing"]) if found.version and found.scores else 0.0

    def draw() -> bytes:
        return map_of(found.path, found.row, found.scores, sigma, how == "outline")

    # A view is the picture's own; a map is that of one inspection of it.
    name = found.picture.digest if how == "view" else f"{inspection}-{found.picture.digest[:16]}"
    return _drawn(request, station, f"{how}/{name}", draw)


def _drawn(request: Request, station: Station, name: str, draw: Callable[[], bytes]) -> Response:
    """A drawn JPEG: from the cache, or into it."""
    folder, own = name.split("/")
    path = station.files / f"cache/{folder}/{own[:2]}/{own}.jpg"
    tag = f'"{_DRAWING}-{own}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag, "Cache-Control": _KEEP})
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        try:
            content = draw()
        except ImageError as error:
            raise HTTPException(404, error.reason) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        _bound(station.files / "cache", path)
    return _answer(request, content, "image/jpeg", tag)


def _answer(request: Request, content: bytes, kind: str, tag: str) -> Response:
    headers = {"ETag": tag, "Cache-Control": _KEEP, "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


def _bound(cache: Path, added: Path) -> None:
    """Now and then, let the oldest drawn pictures go where there are too many."""
    if secrets.randbelow(_CACHE_FILES // 20):
        return
    entries: list[tuple[float, Any]] = []
    for folder, _folders, names in os.walk(cache):
        for name in names:
            path = Path(folder) / name
            try:
                entries.append((path.stat().st_mtime, path))
            except FileNotFoundError:
                continue
    entries.sort(key=lambda one: one[0])
    for _when, path in entries[: max(len(entries) - _CACHE_FILES * 9 // 10, 0)]:
        if path != added:
            path.unlink(missing_ok=True)
