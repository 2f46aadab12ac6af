"""Model files from outside, as somebody would make one who wants in."""

import asyncio
import io
import json
import pickle
import struct
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from fastapi import UploadFile
from safetensors.numpy import save

from offnominal import modelfile
from offnominal.errors import OffnominalError, OptionError
from offnominal.station.access.quarantine import accept, receive, refuse
from offnominal.station.access.who import Who
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.tables import Audit, Product, Version
from tests.station.conftest import BOTH
from tests.station.parts import model_file

ADA = Who("ada", "admin", 1)
PROGRAM = Who("token line", "engineer")


def play(settings: Settings, *contents: bytes, name: str = "../../part.offn") -> Station:
    """A station that was sent these files for its one product, and stopped."""

    async def main() -> None:
        await station.start()
        try:
            for content in contents:
                await receive(station, PROGRAM, 1, UploadFile(io.BytesIO(content), filename=name))
        finally:
            await station.stop()

    station = Station(settings)
    station.database.upgrade()
    with station.database.writing() as session:
        if session.get(Product, 1) is None:
            session.add(Product(name="washer", created=datetime.now(UTC)))
    asyncio.run(main())
    return station


def kept(station: Station) -> list[str]:
    return sorted(path.name for path in (station.files / "quarantine").glob("*"))


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/offnominal-was-here"),))


def header_of(**more: object) -> bytes:
    """A model file with a good checksum, and a header as somebody else wrote it."""
    known = modelfile.read_header(model_file())
    del known["sums"], known["format"], known["version"]
    path = Path(model_file()).with_name("made.offn")
    modelfile.write(
        path, known | more, modelfile.read(model_file(), modelfile.read_header(model_file()))
    )
    return path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x" * 100, pickle.dumps(Harmful()), b"PK\x03\x04" + b"\0" * 100),
        *(struct.pack("<Q", 2**60) + b"{", struct.pack("<Q", 2) + b"{}"),
        save({"x": np.zeros(3, np.float32)}),
        save({"x": np.zeros(3, np.float32)}, {"offnominal": "[" * 100_000}),
        save({"x": np.zeros(3, np.float32)}, {"offnominal": json.dumps({"format": 6})}),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_model_file_is_not_kept(settings: Settings, content: bytes) -> None:
    with pytest.raises(OffnominalError) as refused:
        play(settings, content)
    station = Station(settings)
    assert kept(station) == []
    assert not Path("/tmp/offnominal-was-here").exists()
    assert str(station.files.folder) not in str(refused.value)
    with station.database.reading() as session:
        assert session.scalars(sa.select(Version)).all() == []


@pytest.mark.parametrize(
    "how", [pytest.param("flipped", marks=pytest.mark.slow), "cut", "method", "asks"]
)
def test_what_is_not_as_it_was_written_is_not_kept(settings: Settings, how: str) -> None:
    content = bytearray(model_file().read_bytes())
    if how == "flipped":
        content[-100] ^= 1
    elif how == "cut":
        content = content[:-1]
    else:
        content = bytearray(header_of(method="os.system" if how == "method" else "chat"))
    with pytest.raises(OffnominalError):
        play(settings, bytes(content))
    assert kept(Station(settings)) == []


def test_size_and_product_are_checked(settings: Settings) -> None:
    small = settings.model_copy(update={"model_bytes": 5000})
    with pytest.raises(OptionError, match="5000 bytes"):
        play(small, model_file().read_bytes())
    assert kept(Station(settings)) == []


@pytest.mark.slow
@BOTH
def test_nothing_is_used_before_an_engineer_says_so(settings: Settings) -> None:
    content = model_file().read_bytes()
    station = play(settings, content, content)
    with station.database.reading() as session:
        first, second = session.scalars(sa.select(Version).order_by(Version.number)).all()
        assert session.get_one(Product, 1).live_id is None
    assert (first.state, first.how, first.number, second.number) == ("quarantined", "upload", 1, 2)
    assert first.note == "part.offn"
    assert first.facts["method"] == "anomalydino"
    assert first.file.startswith("quarantine/")
    assert (station.files / first.file).stat().st_mode & 0o777 == 0o600
    for who in (PROGRAM, Who("bo", "operator", 2)):
        for act in (accept, refuse):
            with pytest.raises(OptionError, match="by an engineer"):
                act(station, who, first.id)
    taken = accept(station, ADA, first.id)
    assert (taken.state, taken.file) == ("ready", "models/1/1.offn")
    assert (station.files / taken.file).read_bytes() == content
    refuse(station, ADA, second.id)
    assert kept(station) == []
    for gone in (first.id, second.id, 99):
        for act in (accept, refuse):
            with pytest.raises(OptionError, match="no such version"):
                act(station, ADA, gone)
    with station.database.reading() as session:
        acts = session.scalars(sa.select(Audit.action).order_by(Audit.id)).all()
    assert acts == ["version.receive"] * 2 + ["version.accept", "version.refuse"]


@pytest.mark.slow
def test_a_file_that_was_changed_in_quarantine_is_not_accepted(settings: Settings) -> None:
    station = play(settings, model_file().read_bytes())
    path = next((station.files / "quarantine").iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(OptionError, match="not as it came"):
        accept(station, ADA, 1)
    with station.database.reading() as session:
        assert session.scalars(sa.select(Version.state)).all() == ["quarantined"]
