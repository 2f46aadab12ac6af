"""Pictures to try a version with: judged and shown, and on no record of inspections."""

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from offnominal.errors import ImageError, OffnominalError
from offnominal.images import read_image
from offnominal.paths import IMAGE_SUFFIXES
from offnominal.station.access.uploads import check_picture
from offnominal.station.access.who import Who, allowed
from offnominal.station.language import _
from offnominal.station.learning.references import Refused
from offnominal.station.pages.found import product_of
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Version

__all__ = ["router"]

router = APIRouter()

Engineer = Annotated[Who, Depends(allowed("engineer"))]
_KEPT = 24  # of one product, on the page


@router.get("/products/{product}/test")
def show(
    request: Request, product: int, station: Here, who: Engineer, version: int | None = None
) -> Response:
    """What was tried, the newest first."""
    return _page(request, station, product, who, version)


@router.post("/products/{product}/test")
async def judge(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    files: list[UploadFile],
    version: int | None = None,
) -> Response:
    """Judge pictures by a version: the one that is named, is live, or is the newest."""

    def prepare() -> tuple[Version, list[tuple[str, str]], list[Refused]]:
        chosen = _version(station, product, version)
        if chosen is None:
            raise HTTPException(409, _("There is no version yet: learn from some pictures first."))
        good, bad = [], []
        for one in files:
            if one.filename or one.size:
                name = Path((one.filename or "picture").replace("\\", "/")).name
                try:
                    content = one.file.read(station.settings.upload_bytes + 1)
                    good.append((name, _put_down(station, product, name, content)))
                except ImageError as error:
                    bad.append(Refused(name, error.reason))
        return chosen, good, bad

    chosen, pictures, refused = await run_in_threadpool(prepare)
    done = []
    for name, picture in pictures:
        stem = picture.removesuffix(Path(picture).suffix)
        try:
            found = await station.learner.run(
                "heat", None, model=chosen.file, picture=picture, file=f"{stem}.heat.png"
            )
        except OffnominalError as error:
            refused.append(Refused(name, str(error)))
        else:
            done.append(_note(station, stem, name, chosen.number, found))
        finally:
            (station.files / picture).unlink(missing_ok=True)
    await run_in_threadpool(_tidy, station, product)
    if request.headers.get("accept", "").startswith("text/x-part"):
        return await run_in_threadpool(_part, request, product, who, done, refused)
    if refused or not pictures:
        words = "" if refused else _("No file was chosen.")
        more = (request, station, product, who, version, 422, refused, words)
        return await run_in_threadpool(_page, *more)
    query = f"?version={version}" if version else ""
    return RedirectResponse(f"/products/{product}/test{query}", 303)


@router.post("/products/{product}/test/clear")
def clear(product: int, station: Here, who: Engineer) -> Response:
    """Take all of them away."""
    shutil.rmtree(_folder(station, product), ignore_errors=True)
    return RedirectResponse(f"/products/{product}/test", 303)


@router.get("/products/{product}/test/{name}.png")
def heat(product: int, name: str, station: Here, who: Engineer) -> Response:
    """The heat map of one."""
    if not name.isalnum() or not (file := _folder(station, product) / f"{name}.heat.png").exists():
        raise HTTPException(404, _("This picture was taken away."))
    return FileResponse(file, headers={"Cache-Control": "private, max-age=86400"})


def _folder(station: Station, product: int) -> Path:
    return station.files / f"trials/{product}"


def _put_down(station: Station, product: int, name: str, content: bytes) -> str:
    """A picture's name within the station's folder, for as long as it is judged."""
    check_picture(content, station.settings, name)
    suffix = Path(name).suffix.lower()
    suffix = suffix if suffix in IMAGE_SUFFIXES else ".png"
    file = f"trials/{product}/{secrets.token_hex(8)}{suffix}"
    path = station.files / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        read_image(path)
    except ImageError:
        path.unlink()
        raise
    return file


def _note(
    station: Station, stem: str, name: str, version: int, found: dict[str, Any]
) -> dict[str, Any]:
    verdict = {True: "reject", False: "good", None: "not-inspected"}[found["is_anomalous"]]
    told = {
        "id": Path(stem).name,
        "name": name,
        "version": version,
        "verdict": verdict,
        "score": found["score"],
        "threshold": found["threshold"],
        "size": [found["width"], found["height"]],
    }
    (station.files / f"{stem}.json").write_text(json.dumps(told), encoding="utf-8")
    return told


def _tried(station: Station, product: int) -> list[dict[str, Any]]:
    notes = _notes(station, product)[:_KEPT]
    return [json.loads(one.read_text(encoding="utf-8")) for one in notes]


def _notes(station: Station, product: int) -> list[Path]:
    found = _folder(station, product).glob("*.json")
    return sorted(found, key=lambda one: one.stat().st_mtime_ns, reverse=True)


def _tidy(station: Station, product: int) -> None:
    for old in _notes(station, product)[_KEPT:]:
        old.with_suffix(".heat.png").unlink(missing_ok=True)
        old.unlink(missing_ok=True)


def _version(station: Station, product: int, number: int | None) -> Version | None:
    with station.database.reading() as session:
        row = product_of(session, product)
        usable = sa.select(Version).filter_by(product_id=product, state="ready")
        if number is not None:
            return session.scalar(usable.filter_by(number=number))
        return row.live or session.scalar(usable.order_by(Version.number.desc()).limit(1))


def _part(
    request: Request, product: int, who: Who, done: Sequence[Any], refused: Sequence[Refused]
) -> HTMLResponse:
    context: dict[str, Any] = {"product_id": product, "tried": done, "refused": refused}
    return page(request, "tried.html.j2", who, **context)


def _page(
    request: Request,
    station: Station,
    product: int,
    who: Who,
    version: int | None,
    status: int = 200,
    refused: Sequence[Refused] = (),
    error: str = "",
) -> Response:
    with station.database.reading() as session:
        row = product_of(session, product)
    context = {
        "product": row,
        "product_id": product,
        "chosen": _version(station, product, version),
        "tried": _tried(station, product),
        "refused": refused,
        "error": error,
    }
    return page(request, "test.html.j2", who, status, **context)
