"""Pictures of good parts come in, and are learned from at once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from offnominal.backbones.auto import packaged_backbone
from offnominal.backbones.catalogue import CATALOGUE
from offnominal.backbones.hub import weights_here
from offnominal.errors import ImageError, OffnominalError, OptionError
from offnominal.paths import find_images
from offnominal.station.access.audit import note
from offnominal.station.access.uploads import check_picture
from offnominal.station.access.who import Who, allowed
from offnominal.station.inspection.learner import Told
from offnominal.station.language import _
from offnominal.station.learning import references
from offnominal.station.learning.references import Refused
from offnominal.station.learning.versions import learn
from offnominal.station.pages.found import product_of
from offnominal.station.pages.jobs import told as job_told
from offnominal.station.pages.jobs import trouble
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station

__all__ = ["router"]

router = APIRouter()

Engineer = Annotated[Who, Depends(allowed("engineer"))]
_BETTER = "dinov2_vits14"
_NETWORKS = ("dinov2_vits14", "dinov2_vitb14", "wide_resnet50_2", "efficientnet_lite2", "builtin")


@router.get("/products/{product}/images")
def show(request: Request, product: int, station: Here, who: Engineer) -> Response:
    """The pictures there are, the ways to bring more, and the way on."""
    return _page(request, station, product, who)


@router.post("/products/{product}/images")
def take_in(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    files: Annotated[list[UploadFile], ()] = (),  # type: ignore[assignment]  # no file at all is told in words
) -> Response:
    """Take in what a browser brings; what cannot be used is named, and the rest is kept."""
    most = station.settings.upload_bytes
    # One by one: together they may be more than there is memory.
    given = (
        (one.filename or "", one.file.read(most + 1)) for one in files if one.filename or one.size
    )
    return _taken(request, station, product, who, given)


@router.post("/products/{product}/images/folder")
def from_folder(
    request: Request, product: int, station: Here, who: Engineer, folder: Annotated[str, Form()]
) -> Response:
    """Take in a folder of the station's own disk."""
    _there(station, product)
    try:
        place = references.within(station.settings.readable, folder)
        found = find_images(place)
        if len(found) > station.settings.upload_files:
            most = station.settings.upload_files
            raise OptionError(f"{folder}: holds {len(found)} pictures; {most} at once are taken")
    except OffnominalError as error:
        return _page(request, station, product, who, 422, error=str(error))
    most = station.settings.upload_bytes
    return _taken(request, station, product, who, ((one.name, _read(one, most)) for one in found))


def _read(path: Path, most: int) -> bytes:
    """A file's bytes, one more than may be at most; none of what cannot be read, which is told."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError:
        return b""


@router.post("/products/{product}/images/source")
async def from_source(
    request: Request, product: int, station: Here, who: Engineer, source: Annotated[str, Form()]
) -> Response:
    """Take a picture with one of the station's cameras."""
    try:
        if (look := station.looks.get(source)) is None:
            raise OptionError(_("The camera %(source)s does not work now.") % {"source": source})
        content = await look()
    except OffnominalError as error:
        more = (request, station, product, who, 422)
        return await run_in_threadpool(_page, *more, error=str(error))
    given = [(f"{source}.png", content)]
    return await run_in_threadpool(_taken, request, station, product, who, given)


@router.post("/products/{product}/images/remove")
def remove(
    product: int,
    station: Here,
    who: Engineer,
    names: Annotated[list[str], Form(default_factory=list)],
) -> Response:
    """Take some out again; models that learned from them stay as they are."""
    gone = references.take_out(station.files, product, names)
    with station.database.writing() as session:
        row = product_of(session, product)
        note(session, who.name, "images.remove", row.name, count=gone)
    return RedirectResponse(f"/products/{product}/images", 303)


@router.get("/products/{product}/images/{name}/small")
def small(product: int, name: str, station: Here, who: Engineer) -> Response:
    """A preview of one."""
    try:
        file = references.small(station.files, product, name)
    except OffnominalError as error:
        raise HTTPException(404, str(error)) from error
    # Its name has its content's hash, so that it never changes.
    return FileResponse(file, headers={"Cache-Control": "private, max-age=604800"})


@router.post("/products/{product}/fit")
async def fit(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    backbone: Annotated[str, Form()] = "auto",
    weights: Annotated[str, Form()] = "",
) -> Response:
    """Learn from the pictures there are, in the background."""

    def given() -> tuple[list[str], dict[str, Any]]:
        _there(station, product)
        names = references.known(station.files, product)
        if not names:
            raise OptionError(_("There is no picture to learn from yet: give some of good parts."))
        return [f"references/{product}/{name}" for name in names], _options(
            station, backbone, weights
        )

    async def work(told: Told) -> dict[str, Any]:
        made = await learn(
            station, product, "fit", who.name, told, pictures=pictures, options=options
        )
        left_out = [[Path(file).name, why] for file, why in made.get("unreadable", [])]
        return {"go": f"/products/{product}/versions/{made['version']}", "left_out": left_out}

    try:
        pictures, options = await run_in_threadpool(given)
        station.jobs.start(product, "fit", who.name, work, len(pictures))
    except OffnominalError as error:
        return await run_in_threadpool(_page, request, station, product, who, 422, error=str(error))
    return RedirectResponse(f"/products/{product}/images", 303)


def _options(station: Station, backbone: str, weights: str) -> dict[str, Any]:
    if backbone not in ("auto", *_NETWORKS):
        raise OptionError(f"--backbone {backbone}: choose one of auto, {', '.join(_NETWORKS)}")
    options: dict[str, Any] = {} if backbone == "auto" else {"backbone": backbone}
    if weights.strip():
        options["weights"] = str(references.within(station.settings.readable, weights))
    return options


def _taken(
    request: Request,
    station: Station,
    product: int,
    who: Who,
    given: Iterable[tuple[str, bytes]],
) -> Response:
    _there(station, product)
    kept: list[str] = []
    refused: list[Refused] = []
    before = set(references.known(station.files, product))
    for name, content in given:
        try:
            check_picture(content, station.settings, name)
            kept.append(references.keep(station.files, product, name, content))
        except ImageError as error:
            refused.append(Refused(error.source, error.reason))
    new = [name for name in dict.fromkeys(kept) if name not in before]
    if new:
        with station.database.writing() as session:
            row = product_of(session, product)
            note(session, who.name, "images.add", row.name, count=len(new))
    if request.headers.get("accept", "").startswith("application/json"):
        told = [one._asdict() for one in refused]
        return JSONResponse({"kept": kept, "new": new, "refused": told})
    if refused or not kept:
        words = "" if refused else _("No file was chosen.")
        return _page(request, station, product, who, 422, refused=refused, error=words)
    return RedirectResponse(f"/products/{product}/images", 303)


def _page(
    request: Request,
    station: Station,
    product: int,
    who: Who,
    status: int = 200,
    refused: Sequence[Refused] = (),
    error: str = "",
) -> Response:
    with station.database.reading() as session:
        row = product_of(session, product)
    running, last = station.jobs.running(product), station.jobs.last(product, "fit")
    failed = "" if running else trouble(last)
    have = weights_here(CATALOGUE[_BETTER]) is not None
    context: dict[str, Any] = {
        "product": row,
        "names": references.known(station.files, product),
        "refused": refused,
        "error": error or failed,
        "learned": last.result.get("go", "") if last and last.state == "done" else "",
        "job": job_told(running) if running else None,
        "folders": station.settings.readable,
        "sources": list(station.looks),
        "networks": _NETWORKS,
        "taken": _BETTER if have else packaged_backbone(_BETTER).name,
        "better": "" if have else _BETTER,
    }
    return page(request, "images.html.j2", who, status, **context)


def _there(station: Station, product: int) -> None:
    with station.database.reading() as session:
        product_of(session, product)
