"""Having a picture inspected over HTTP."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from offnominal.errors import ImageError, OptionError
from offnominal.images import MAX_PIXELS
from offnominal.station.access.who import Who, scoped
from offnominal.station.inspection import recipes
from offnominal.station.inspection.pictures import size_of, suffix_of
from offnominal.station.inspection.request import BusyError, NotStoredError, Request
from offnominal.station.settings import Settings
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Inspection

__all__ = ["router"]

router = APIRouter(tags=["inspect"])

_OWN = ("product", "serial", "request_id", "deadline")
_LONGEST = 200  # letters of an id or a serial number
_META = 100  # further fields
_META_LETTERS = 1000  # of each
_LONGEST_DEADLINE = 3600.0  # seconds


class Found(BaseModel):
    """What was found on a part; it is on the disk."""

    id: int
    request: str
    product: str
    version: int | None
    serial: str | None
    verdict: str
    told: str
    reason: str
    score: float | None
    threshold: float | None
    p_value: float | None
    regions: list[Any]
    milliseconds: float
    links: dict[str, str]


def _text(words: str) -> dict[str, Any]:
    return {"type": "string", "description": words}


_FIELDS = {
    "product": _text("Its name, number or barcode; without one, the product that the line makes."),
    "serial": _text("The part's serial number."),
    "request_id": _text("The sender's own id: the same one twice gets the first one's result."),
    "deadline": {"type": "number", "description": "Seconds after which it is not inspected."},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}} | _FIELDS,
                    "additionalProperties": {"type": "string"},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        *({"name": name, "in": "query", "schema": schema} for name, schema in _FIELDS.items()),
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}},
    ],
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body cannot be read."},
    404: {"description": "There is no such product."},
    413: {"description": "The picture has too many bytes or pixels."},
    415: {"description": "What was sent is no picture."},
    422: {"description": "There is no picture, or a field cannot be."},
    503: {"description": "The queue is full, or nothing can be stored; see Retry-After."},
}


@router.post("/v1/inspect", response_model=Found, responses=_ANSWERS, openapi_extra=_BODY)
async def inspect(
    request: HttpRequest, station: Here, who: Annotated[Who, Depends(scoped("inspect"))]
) -> JSONResponse:
    """Judge a picture, and answer when the result is stored.

    As a form with the picture in ``image``, or as the body itself with the fields in the query.
    Further fields are kept with the result. What cannot be judged is answered and stored as
    ``not-inspected``, with what the line was told in ``told``; it is never good.
    """
    image, fields = await _read(request, station.settings)
    _check(image, station.settings)
    given = fields.pop("request_id", "") or request.headers.get("idempotency-key", "")
    serial = fields.pop("serial", "") or None
    for name, value in (("request_id", given), ("serial", serial or "")):
        if len(value) > _LONGEST or "\0" in value:
            raise HTTPException(422, f"{name}: up to {_LONGEST} letters, and no zero bytes")
    deadline = _deadline(fields.pop("deadline", ""))
    product = await _product(station, fields.pop("product", ""))
    asked = Request(
        id=given or uuid.uuid4().hex,
        product=product,
        image=image,
        serial=serial,
        meta=fields,
        deadline=deadline,
        fresh=not given,
    )
    try:
        found = _answer(await station.inspector.inspect(asked))
    except BusyError as error:
        again = {"Retry-After": str(max(1, round(error.retry_after)))}
        raise HTTPException(503, str(error), again) from error
    except NotStoredError as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from error
    except OptionError as error:
        raise HTTPException(404, str(error)) from error
    return JSONResponse(found.model_dump())  # it was checked when it was made


async def _read(request: HttpRequest, settings: Settings) -> tuple[bytes, dict[str, str]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields = dict(request.query_params)
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=_META) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise HTTPException(422, "image: a form with the picture's file in it is needed")
            content = await image.read(settings.upload_bytes + 1)
            fields |= {name: value for name, value in form.items() if isinstance(value, str)}
    elif kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
        raise HTTPException(415, "send a form with the picture in `image`, or the picture itself")
    else:
        content = await request.body()
        if not content:
            raise HTTPException(422, "there is no picture: send its file as the body")
    if len(fields) > _META or any(
        len(name) > _LONGEST or len(value) > _META_LETTERS or "\0" in name + value
        for name, value in fields.items()
    ):
        raise HTTPException(
            422,
            f"up to {_META} fields of {_META_LETTERS} letters are kept, without zero bytes",
        )
    return content, fields


def _check(image: bytes, settings: Settings) -> None:
    """What is no picture was never meant to be inspected; what is a damaged one was."""
    if len(image) > settings.upload_bytes:
        raise HTTPException(413, f"more than the {settings.upload_bytes} bytes that are taken")
    if image and suffix_of(image) == ".bin":
        raise HTTPException(415, "not a JPEG, PNG, BMP, WebP or TIFF picture")
    most = min(settings.upload_pixels, MAX_PIXELS)
    try:
        size = size_of(image)
    except ImageError as error:
        raise HTTPException(413, f"more than the {most} pixels that are taken") from error
    if size is not None and size[0] * size[1] > most:
        raise HTTPException(413, f"{size[1]} x {size[0]} pixels; {most} are taken")


def _deadline(text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST_DEADLINE:
        raise HTTPException(422, f"deadline: seconds, up to {_LONGEST_DEADLINE:g}")
    return seconds


async def _product(station: Station, text: str) -> int:
    if text:
        try:
            return await station.inspector.named(text)
        except OptionError as error:
            raise HTTPException(404, str(error)) from error
    active = await recipes.active(station)
    if active is None:
        raise HTTPException(404, "product: name one, or start one on the operator page")
    return active.id


def _answer(row: Inspection) -> Found:
    plain = {name: getattr(row, name) for name in Found.model_fields if hasattr(row, name)}
    links = {
        "self": f"/v1/inspections/{row.id}",
        "page": f"/history/{row.id}",
        "picture": f"/pictures/{row.id}/image",
    }
    more = {
        "product": row.product.name,
        "version": row.version.number if row.version else None,
        "links": links,
    }
    return Found(**(plain | more))
