"""Watched folders: whole files only, in order, each once, whatever happens between."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from offnominal.station.inspection.request import BusyError, Request
from offnominal.station.settings import Settings
from offnominal.station.sources.run import running
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection
from tests.station.line import a_station, png, until


def folder(path: Path, **more: Any) -> dict[str, Any]:
    found = {"type": "folder", "name": "drop", "folder": path, "product": "tile", "settle": 0.05}
    return found | more


def stored(station: Station) -> list[Inspection]:
    with station.database.reading() as session:
        return list(session.scalars(sa.select(Inspection).order_by(Inspection.id)))


async def test_what_is_there_is_taken_in_order_and_moved(tmp_path: Path) -> None:
    drop = tmp_path / "in"
    drop.mkdir()
    for number, name in enumerate(("SN12_a.png", "SN3_b.png", "c.png")):
        (drop / name).write_bytes(png(number))
        os.utime(drop / name, (1_700_000_000 - number, 1_700_000_000 - number))
    (drop / "d.png.part").write_bytes(png(9))
    (drop / ".e.png").write_bytes(png(9))
    (drop / "notes.txt").write_text("x")
    source = folder(drop, serial=r"^SN(\d+)_", failed=tmp_path / "elsewhere")
    async with a_station(tmp_path / "s", sources=[source]) as station, running(station):
        await until(lambda: len(list((tmp_path / "elsewhere").glob("*"))) == 3)
        (drop / "d.png.part").rename(drop / "d.png")
        await until(lambda: len(list((tmp_path / "elsewhere").glob("*"))) == 4)
        found = stored(station)
    # No model is live: they are stored as not inspected, and are no good parts.
    assert {(one.verdict, one.source) for one in found} == {("not-inspected", "drop")}
    assert sorted(one.meta["file"] for one in found[:3]) == ["SN12_a.png", "SN3_b.png", "c.png"]
    assert {one.meta["file"]: one.serial for one in found} == {
        "SN12_a.png": "12", "SN3_b.png": "3", "c.png": None, "d.png": None,
    }  # fmt: skip
    assert sorted(path.name for path in drop.iterdir()) == [".e.png", "done", "notes.txt"]


async def test_a_file_that_grows_is_waited_for(tmp_path: Path) -> None:
    whole = png(1)
    source = folder(tmp_path / "in", settle=0.3)
    async with a_station(tmp_path / "s", sources=[source]) as station, running(station):
        await until(lambda: (tmp_path / "in/done").is_dir())
        for end in range(4):
            with (tmp_path / "in/a.png").open("ab") as file:
                file.write(whole[end * len(whole) // 4 : (end + 1) * len(whole) // 4])
            await asyncio.sleep(0.1)
        await until(lambda: stored(station))
        await until(lambda: (tmp_path / "in/failed/a.png").is_file())
        found = stored(station)
    assert len(found) == 1
    assert (tmp_path / "in/failed/a.png").read_bytes() == whole


async def test_the_same_name_again_is_another_part(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    async with a_station(tmp_path / "s", sources=[source]) as station, running(station):
        await until(lambda: (tmp_path / "in/done").is_dir())
        for number in range(2):
            (tmp_path / "in/a.png").write_bytes(png(number))
            await until(lambda number=number: len(stored(station)) == number + 1)
            await until(lambda: not (tmp_path / "in/a.png").exists())
    assert sorted(path.name for path in (tmp_path / "in/failed").iterdir()) == ["a-1.png", "a.png"]


async def test_a_full_queue_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    async with a_station(tmp_path / "s", sources=[source], queue=1, workers=4) as station:
        (tmp_path / "in").mkdir()
        for number in range(6):
            (tmp_path / f"in/{number}.png").write_bytes(png(number))
        busy = 0
        inspect = station.inspector.inspect

        async def counted(request: Request) -> Inspection:
            nonlocal busy
            try:
                return await inspect(request)
            except BusyError:
                busy += 1
                raise

        station.inspector.inspect = counted  # type: ignore[method-assign]  # only looked at
        async with running(station):
            await until(lambda: len(list((tmp_path / "in/failed").glob("*"))) == 6)
        assert (len(stored(station)), busy > 0) == (6, True)


async def test_no_product_blinds_the_station_and_leaves_the_files(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", product="other")
    async with a_station(tmp_path / "s", sources=[source]) as station:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.png").write_bytes(png(1))
        async with running(station):
            await until(lambda: station.state.blind)
            assert "product = 'other': there is none" in station.state.why[0]
        assert (tmp_path / "in/a.png").is_file()


async def test_a_file_that_is_too_large_is_told_as_trouble(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    async with a_station(tmp_path / "s", sources=[source], upload_bytes=1024) as station:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.png").write_bytes(bytes(1025))
        async with running(station):
            await until(lambda: stored(station))
        assert "1025 bytes, more than the 1024 of upload_bytes" in stored(station)[0].reason


KILLED = """
import asyncio, os, shutil, signal, sys
from pathlib import Path
from tests.station.line import a_station
from tests.station.test_folders import folder, running

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)  # the result is stored; the picture was not moved

async def main():
    base = Path(sys.argv[1])
    shutil.move = die
    async with a_station(base / "s", sources=[folder(base / "in")]) as station:
        async with running(station):
            await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_kill_between_storing_and_moving_stores_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png(1))
    root = Path(__file__).parents[2]
    for _ in range(2):  # the second one finds the result of the first one, and is killed as well
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path], cwd=root, timeout=120, check=False
        )
        assert ended.returncode == -signal.SIGKILL
        assert (tmp_path / "in/a.png").is_file()
    source = folder(tmp_path / "in")
    async with a_station(tmp_path / "s", sources=[source]) as station:
        assert len(stored(station)) == 1
        async with running(station):
            await until(lambda: (tmp_path / "in/failed/a.png").is_file())
        assert len(stored(station)) == 1


@pytest.mark.parametrize("page", ["station-plc", "station-cameras"])
def test_settings_that_the_documentation_shows_are_read(
    tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_PASSWORD", "a")
    monkeypatch.setenv("CAMERA_PASSWORD", "b")
    (tmp_path / "key").write_text("c")
    text = (Path(__file__).parents[2] / f"docs/{page}.md").read_text(encoding="utf-8")
    shown = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(shown) >= 2
    for one in shown:
        given = one.replace("/etc/offnominal/mes.key", str(tmp_path / "key"))
        (tmp_path / "station.toml").write_text(given, encoding="utf-8")
        found = Settings(folder=tmp_path)
        assert found.sources or found.outputs


def test_settings_name_the_field_and_the_remedy(tmp_path: Path) -> None:
    cases = {
        'type = "folder"\nname = "a"\nfolder = "x"\nserial = "abc"': "give one group in brackets",
        'type = "folder"\nname = "a"': "folder",
        'type = "camera"\nname = "a"\ndevice = "rtsp://u:p@h/"': "give user and password apart",
        'type = "camera"\nname = "a"\ndevice = 0\npassword = "s3cret"': "give env:NAME or",
        'type = "video"\nname = "a"': "'folder', 'camera', 'genicam'",
    }
    for text, words in cases.items():
        (tmp_path / "station.toml").write_text(f"[[sources]]\n{text}\n")
        with pytest.raises(ValidationError) as caught:
            Settings(folder=tmp_path)
        assert words in str(caught.value)
        assert "s3cret" not in str(caught.value)
