"""Model files from outside: looked at without trust, and used when an engineer says so."""

import hashlib
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import UploadFile
from fastapi.concurrency import run_in_threadpool

from offnominal.detectors.registry import METHODS, light_class
from offnominal.errors import ModelFileError, OffnominalError, OptionError
from offnominal.modelfile import read_header
from offnominal.station.access import audit
from offnominal.station.access.uploads import shown_name
from offnominal.station.access.who import Who
from offnominal.station.station import Station
from offnominal.station.store.tables import Product, Version

__all__ = ["accept", "receive", "refuse"]

_FOLDER = "quarantine"
_PIECE = 2**20


async def receive(station: Station, who: Who, product: int, upload: UploadFile) -> Version:
    """Take a model file in, as a version that judges nothing yet.

    It is written under a name of the station's own and read under the library's rules: no code, a
    header that is valid and whole, a known method. Then the learner's process opens it, not the
    one that answers browsers.

    Raises
    ------
    OffnominalError
        If it is too large, no model file, damaged, of an unknown method, or there is no such
        product. Then nothing of it is kept.
    """
    name = f"{_FOLDER}/{secrets.token_hex(16)}.offn"
    path = station.files / name
    try:
        digest = await _write(station, upload, path)
        try:
            await run_in_threadpool(_check, path)
            told = await station.learner.run("facts", model=name)
        except OffnominalError as error:
            # Not the station's own name for it, which says nothing to who sent it.
            words = str(error).replace(str(path), shown_name(upload.filename or ""))
            raise ModelFileError(words.replace(name, shown_name(upload.filename or ""))) from error
        return await run_in_threadpool(_enter, station, who, product, name, digest, told, upload)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def accept(station: Station, who: Who, version: int) -> Version:
    """Let a quarantined version be chosen to judge; a person does that, never a token.

    Raises
    ------
    OptionError
        If there is no such version in quarantine, a token asks, or the file is not as it came.
    """
    _check_person(who)
    with station.database.writing() as session:
        found = _quarantined(session, version)
        before = station.files / found.file
        if _digest(before) != found.digest:
            raise OptionError("the model file in quarantine is not as it came: send it again")
        found.file = station.files.model(found.product_id, found.number)
        after = station.files / found.file
        after.parent.mkdir(parents=True, exist_ok=True)
        after.unlink(missing_ok=True)
        # Under both names until the record says which, so that a stop in between loses nothing.
        os.link(before, after)
        found.state = "ready"
        audit.note(session, who.name, "version.accept", found_name(found), digest=found.digest)
    before.unlink(missing_ok=True)
    return found


def refuse(station: Station, who: Who, version: int) -> None:
    """Throw a quarantined version away, file and all; the audit log remembers it.

    Raises
    ------
    OptionError
        If there is no such version in quarantine, or a token asks.
    """
    _check_person(who)
    with station.database.writing() as session:
        found = _quarantined(session, version)
        path = station.files / found.file
        audit.note(session, who.name, "version.refuse", found_name(found), digest=found.digest)
        session.delete(found)
    path.unlink(missing_ok=True)


def found_name(version: Version) -> str:
    """How the audit log names a version."""
    return f"product {version.product_id} version {version.number}"


async def _write(station: Station, upload: UploadFile, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    most, digest, length = station.settings.model_bytes, hashlib.sha256(), 0
    with path.open("xb") as file:
        while piece := await upload.read(_PIECE):
            length += len(piece)
            if length > most:
                raise OptionError(f"a model file of more than the {most} bytes that are taken")
            digest.update(piece)
            await run_in_threadpool(file.write, piece)
        await run_in_threadpool(_flush, file)
    path.chmod(0o600)
    return digest.hexdigest()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check(path: Path) -> None:
    method = read_header(path)["method"]
    if method not in METHODS:
        raise ModelFileError(f"{path}: of a method that this station does not know")
    if getattr(light_class(method), "confirmed_options", ()):
        raise ModelFileError(
            f"{path}: of the method {method}, which asks another machine about each part; a file "
            "from outside does not decide which"
        )


def _enter(
    station: Station,
    who: Who,
    product: int,
    name: str,
    digest: str,
    told: dict[str, Any],
    upload: UploadFile,
) -> Version:
    with station.database.writing() as session:
        # Held until the end: two versions at once get two numbers.
        held = sa.select(Product.id).where(Product.id == product).with_for_update()
        if session.scalar(held) is None:
            raise OptionError("there is no such product")
        last = session.scalar(
            sa.select(sa.func.max(Version.number)).where(Version.product_id == product)
        )
        version = Version(
            product_id=product,
            number=(last or 0) + 1,
            file=name,
            digest=digest,
            made_by=who.name,
            made=datetime.now(UTC),
            how="upload",
            note=shown_name(upload.filename or ""),
            state="quarantined",
            threshold=told.get("threshold"),
            promise=told.get("promise", ""),
            facts=told["facts"],
        )
        session.add(version)
        session.flush()
        audit.note(session, who.name, "version.receive", found_name(version), digest=digest)
    return version


def _quarantined(session: Any, version: int) -> Version:
    found: Version | None = session.get(Version, version, with_for_update=True)
    if found is None or found.state != "quarantined":
        raise OptionError("there is no such version in quarantine")
    return found


def _check_person(who: Who) -> None:
    if who.user is None or who.role == "operator":
        raise OptionError("a model file from outside is accepted or refused by an engineer")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
