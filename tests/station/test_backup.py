"""Retention deletes what was shown, and no more; a backup restores to either database."""

import io
import json
import os
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from offnominal.errors import OptionError
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store import retention
from offnominal.station.store.backup import backup, restore
from offnominal.station.store.database import Database
from offnominal.station.store.labelling import label
from offnominal.station.store.retention import Rules, apply, plan, set_rules
from offnominal.station.store.tables import Base, Inspection, Picture
from tests.station.conftest import BOTH
from tests.station.rows import a_picture, add, add_product

NOW = datetime.now(UTC)


@pytest.fixture
def parts(station: Station) -> list[int]:
    """One part a day for ten days, every third rejected, each with a picture of its own."""
    product, version = add_product(station)
    scores = [1.5 if place % 3 == 0 else 0.5 for place in range(10)]
    pictures = [a_picture(20 * place + 20) for place in range(10)]
    found = add(
        *(station, product, version, scores, timedelta(days=1), NOW - timedelta(hours=1), pictures)
    )
    old = time.time() - 86_400
    for path in (station.files / "pictures").rglob("*.png"):
        os.utime(path, (old, old))
    return found


def kept(station: Station) -> list[int]:
    with station.database.reading() as session:
        asked = sa.select(Inspection.id).where(Inspection.picture_id.is_not(None))
        return sorted(session.scalars(asked))


@BOTH
def test_rules_delete_what_they_said(station: Station, parts: list[int]) -> None:
    with station.database.writing() as session:
        label(session, [parts[1]], "good", "ada")
        set_rules(session, Rules(accepted_days=4, rejected_days=8), "ada")
    told = plan(station, Rules(accepted_days=4, rejected_days=8))
    assert (told.pictures, told.all_pictures, told.done) == (4, 10, True)
    assert kept(station) == parts
    done = apply(station)
    assert (done.pictures, done.bytes) == (told.pictures, told.bytes)
    # Labelled ones stay, whatever their age; rejected ones longer than accepted ones.
    assert kept(station) == [parts[one] for one in (1, 3, 6, 7, 8, 9)]
    files = list((station.files / "pictures").rglob("*.png"))
    with station.database.reading() as session:
        assert {one.name for one in files} == {
            Path(name).name for name in session.scalars(sa.select(Picture.file))
        }
    assert apply(station).pictures == 0


def test_without_rules_nothing_goes(station: Station, parts: list[int]) -> None:
    assert apply(station).pictures == 0
    assert kept(station) == parts


def test_beyond_a_size_the_oldest_accepted_go_first(station: Station, parts: list[int]) -> None:
    with station.database.reading() as session:
        sizes = session.scalars(sa.select(Picture.size).order_by(Picture.id)).all()
    gone = sizes[1] + sizes[2]
    with station.database.writing() as session:
        set_rules(session, Rules(most_gigabytes=(sum(sizes) - gone + 1) / 1e9), "ada")
    apply(station)
    assert kept(station) == [one for one in parts if one not in (parts[1], parts[2])]


def test_a_share_of_the_accepted_is_kept(station: Station, parts: list[int]) -> None:
    assert plan(station, Rules(accepted_days=1, accepted_share=100)).pictures == 0
    few = plan(station, Rules(accepted_days=1, accepted_share=40)).pictures
    assert 0 < few < plan(station, Rules(accepted_days=1)).pictures


def test_a_picture_that_comes_again_just_now_stays(station: Station, parts: list[int]) -> None:
    station.files.keep_picture(a_picture(40), ".png")
    with station.database.writing() as session:
        set_rules(session, Rules(accepted_days=1, rejected_days=1), "ada")
    apply(station)
    assert parts[1] in kept(station)


def test_a_file_that_is_renewed_while_it_goes_is_put_back(
    station: Station, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = [station.files / one for one in [_file_of(station, parts[1])]]
    monkeypatch.setattr(
        retention, "_fresh", lambda *_: station.files.keep_picture(a_picture(40), ".png") is None
    )
    with station.database.writing() as session:
        set_rules(session, Rules(accepted_days=1, rejected_days=1), "ada")
    apply(station)
    assert path.exists()


def _file_of(station: Station, inspection: int) -> str:
    with station.database.reading() as session:
        row = session.get_one(Inspection, inspection)
        return session.get_one(Picture, row.picture_id).file


@pytest.fixture
def packed(station: Station, parts: list[int], tmp_path: Path) -> Path:
    """A backup of it."""
    model = station.files / "models/1/1.offn"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"model")
    reference = station.files / "references/1/a b ü.png"
    reference.parent.mkdir(parents=True)
    reference.write_bytes(a_picture())
    with station.database.writing() as session:
        label(session, [parts[0]], "bad", "ada", "Kratzer ü")
    path = tmp_path / "backup.zip"
    path.write_bytes(b"".join(backup(station)))
    return path


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            return {
                table.name: [
                    tuple(row)
                    for row in connection.execute(table.select().order_by(*table.primary_key))
                ]
                for table in Base.metadata.sorted_tables
                if table.name != "sessions"
            }
    finally:
        database.close()


@BOTH
@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_a_backup_restores_to_either_database(
    station: Station, packed: Path, tmp_path: Path, to: str, request: pytest.FixtureRequest
) -> None:
    url = ""
    if to == "postgresql":
        url = request.getfixturevalue("postgres").empty()
    folder = tmp_path / "again"
    restore(packed, folder, url)
    now = Settings(folder=folder, database=url)
    assert contents(now.database_url) == contents(station.settings.database_url)
    for name in ("models", "references", "pictures"):
        before = {
            one.relative_to(station.files.folder) for one in (station.files / name).rglob("*.*")
        }
        assert {one.relative_to(folder) for one in (folder / name).rglob("*.*")} == before
    again = Station(now)
    # What comes next has the next number, in PostgreSQL as well.
    assert add_product(again, "Next")[0] == 2
    again.database.close()


def named(folder: Path, name: str) -> set[str]:
    return {str(one.relative_to(folder)) for one in (folder / name).rglob("*.*")}


def changed(path: Path, **entries: bytes | None) -> Path:
    """The same backup with other entries, in which ``manifest`` is that of the first."""
    other = path.with_name(f"changed {len(list(path.parent.iterdir()))}.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for info in old.infolist():
            if info.filename not in entries:
                new.writestr(info, old.read(info))
        for name, content in entries.items():
            if content is not None:
                new.writestr(name, content)
    return other


def with_manifest(path: Path, **values: object) -> Path:
    with zipfile.ZipFile(path) as old:
        told = json.loads(old.read("manifest.json"))
    told.update(values)
    return changed(path, **{"manifest.json": json.dumps(told).encode()})


def test_what_is_no_whole_backup_is_refused(station: Station, packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    with zipfile.ZipFile(packed) as old:
        files = json.loads(old.read("manifest.json"))["files"]
    evil = files | {"../evil": {"size": 1, "digest": "0" * 64}}
    outside = with_manifest(changed(packed, **{"../evil": b"x"}), files=evil)
    for path in (with_manifest(packed, schema_="9999"), with_manifest(packed, format=2)):
        with pytest.raises(OptionError, match="newer"):
            restore(path, folder)
    with pytest.raises(OptionError, match="no backup holds"):
        restore(outside, folder)
    with pytest.raises(OptionError, match="other files"):
        restore(changed(packed, **{"models/1/2.offn": b"x"}), folder)
    with pytest.raises(OptionError, match="damaged"):
        restore(changed(packed, **{"models/1/1.offn": b"xodel"}), folder)
    with pytest.raises(OptionError, match="manifest"):
        restore(changed(packed, **{"manifest.json": None}), folder)
    half = tmp_path / "half.zip"
    half.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(OptionError, match="no backup"):
        restore(half, folder)
    assert not folder.exists()
    assert not [one for one in tmp_path.iterdir() if "restoring" in one.name]
    (folder).mkdir()
    (folder / "x").write_text("")
    with pytest.raises(OptionError, match="not empty"):
        restore(packed, folder)


def test_the_page_counts_before_it_deletes(
    client: TestClient, station: Station, parts: list[int]
) -> None:
    given = {"accepted_days": "4", "accepted_share": "0", "rejected_days": "", "most_gigabytes": ""}
    assert client.post("/keep/plan", data=given | {"accepted_days": "-1"}).status_code == 422
    client.post("/keep/plan", data=given)
    for _try in range(100):
        told = client.get("/keep/plan").text
        if "hx-get" not in told:
            break
        time.sleep(0.02)
    assert "<b>4</b>" in told
    assert kept(station) == parts
    client.post("/keep/rules", data={"now": "1"})
    for _try in range(100):
        if len(kept(station)) == 6:
            break
        time.sleep(0.02)
    assert len(kept(station)) == 6
    packed = client.get("/keep/backup?pictures=none")
    names = zipfile.ZipFile(io.BytesIO(packed.content)).namelist()
    assert "rows/inspections.jsonl" in names
    assert not [name for name in names if name.startswith("pictures/")]


def test_only_administrators_keep(client: TestClient, as_role: object) -> None:
    engineer = as_role("engineer")  # type: ignore[operator]  # a function, by the fixture
    assert engineer.get("/keep/backup").status_code == 403
