"""Cameras: a looped video, a real RTSP server, Aravis's own camera; and what triggers them."""

import asyncio
import io
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiomqtt
import cv2
import numpy as np
import pytest
import sqlalchemy as sa
import zxingcpp
from PIL import Image
from pymodbus.client import AsyncModbusTcpClient

from offnominal.station.outputs import queue
from offnominal.station.outputs.run import running as outputs_running
from offnominal.station.sources.barcodes import barcodes
from offnominal.station.sources.frames import NoPictureError, as_png
from offnominal.station.sources.genicam import as_array
from offnominal.station.sources.run import running
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, Product, Setting
from tests.station.line import a_station, free_port, png, until
from tests.station.test_plc import Broker

SYSTEM = Path("/usr/bin/python3")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(queue, "_LONGEST_PAUSE", 0.05)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of frames that get lighter."""
    path = tmp_path_factory.mktemp("video") / "parts.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50, (64, 48))
    for number in range(50):
        writer.write(np.full((48, 64, 3), 50 + 4 * number, np.uint8))
    writer.release()
    return path


def camera(device: Any, **more: Any) -> dict[str, Any]:
    found = {"type": "camera", "name": "top", "device": str(device), "loop": True, "wait": 0.5}
    return found | {"product": "tile"} | more


def stored(station: Station) -> list[Inspection]:
    with station.database.reading() as session:
        return list(session.scalars(sa.select(Inspection).order_by(Inspection.id)))


def picture(station: Station, inspection: Inspection) -> Image.Image:
    with station.database.reading() as session:
        found = session.get(Inspection, inspection.id)
        assert found is not None
        assert found.picture is not None
        return Image.open(io.BytesIO((station.files / found.picture.file).read_bytes()))


async def ready(station: Station) -> None:
    await until(lambda: station.state.facts and not station.state.blind, 20)


async def test_a_trigger_takes_the_next_frame_and_has_it_inspected(
    tmp_path: Path, video: Path
) -> None:
    async with a_station(tmp_path, sources=[camera(video)]) as station, running(station):
        await ready(station)
        found = await station.triggers["top"]("S1")
        assert (found.source, found.serial, found.verdict) == ("top", "S1", "not-inspected")
        kept = picture(station, found)
        assert (kept.format, kept.size) == ("PNG", (64, 48))
        await asyncio.sleep(1.1)  # past the end of the file
        await ready(station)
        await station.triggers["top"](None)
    assert len(stored(station)) == 2


async def test_a_camera_that_is_gone_is_said_and_told_as_not_inspected(
    tmp_path: Path, video: Path
) -> None:
    async with a_station(tmp_path, sources=[camera(tmp_path / "no.avi")]) as station:
        async with running(station):
            await until(lambda: "there is no such file" in " ".join(station.state.why))
            found = await station.triggers["top"](None)
            assert found.verdict == "not-inspected"
            assert found.told == "reject"
            assert "no picture within 0.5 s" in found.reason
            shutil.copy(video, tmp_path / "no.avi")  # it comes back
            await ready(station)
            assert "there is no such file" not in found.reason or found.picture_id is None
        assert "top" not in station.triggers


async def test_the_camera_itself_and_a_timer_trigger(tmp_path: Path, video: Path) -> None:
    every = camera(video, trigger={"type": "frame"})
    timed = camera(video, name="side", trigger={"type": "timer", "seconds": 0.1})
    async with a_station(tmp_path, sources=[every, timed], queue=500) as station:
        async with running(station):
            await until(lambda: {"top", "side"} == {one.source for one in stored(station)})
            await until(lambda: len(stored(station)) > 15)
        count = {
            name: [one.source for one in stored(station)].count(name) for name in ("top", "side")
        }
    assert count["top"] > count["side"] > 0


async def test_a_message_triggers_with_the_serial_number(
    tmp_path: Path, video: Path, broker: Broker
) -> None:
    trigger = {"type": "mqtt", "port": broker.port, "topic": "line/part"}
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        await client.publish("line/part", "OLD", retain=True)
        async with (
            a_station(tmp_path, sources=[camera(video, trigger=trigger)]) as station,
            running(station),
        ):
            await ready(station)
            for message in ("S1", json.dumps({"serial": 2}), "", "{"):
                await client.publish("line/part", message, qos=1)
                count = len(stored(station)) + 1
                await until(lambda count=count: len(stored(station)) == count)
            broker.stop()
            await until(lambda: station.state.blind)
            assert "trigger of top" in station.state.why[0]
            broker.start()
            await ready(station)
    assert [one.serial for one in stored(station)] == ["S1", "2", None, None]


async def test_a_coil_triggers_and_is_acknowledged(tmp_path: Path, video: Path) -> None:
    """By the station's own server, which a PLC writes into."""
    port = free_port()
    plc = {"type": "modbus", "host": "127.0.0.1", "port": port}
    sources = [
        camera(video, trigger=plc | {"coil": 32}),
        camera(video, name="side", trigger=plc | {"coil": 33, "acknowledge": 34}),
    ]
    output = {"type": "modbus", "name": "plc", "port": port}
    async with (
        a_station(tmp_path, sources=sources, outputs=[output]) as station,
        outputs_running(station),
        running(station),
    ):
        await ready(station)
        client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=2)
        assert await client.connect()

        async def bits(*right: bool) -> None:
            async with asyncio.timeout(5):
                while (await client.read_coils(32, count=3)).bits[:3] != list(right):
                    await asyncio.sleep(0.005)

        await client.write_coil(32, True)
        await bits(False, False, False)
        await until(lambda: [one.source for one in stored(station)] == ["top"])
        await client.write_coil(33, True)
        await bits(False, True, True)
        await until(lambda: [one.source for one in stored(station)] == ["top", "side"])
        await client.write_coil(33, False)
        await bits(False, False, False)
        client.close()
    assert len(stored(station)) == 2


@pytest.mark.slow
async def test_a_node_of_opc_ua_triggers(tmp_path: Path, video: Path) -> None:
    asyncua = pytest.importorskip("asyncua")
    url = f"opc.tcp://127.0.0.1:{free_port()}/"
    server = asyncua.Server()
    await server.init()
    server.set_endpoint(url)
    node = await server.nodes.objects.add_variable("ns=1;s=Trigger", "1:Trigger", False)
    trigger = {"type": "opcua", "url": url, "node": "ns=1;s=Trigger"}
    async with (
        server,
        a_station(tmp_path, sources=[camera(video, trigger=trigger)]) as station,
        running(station),
    ):
        await ready(station)
        for count in (1, 2):
            await node.write_value(True)
            await until(lambda count=count: len(stored(station)) == count)
            await node.write_value(False)
            await asyncio.sleep(0.1)
        assert len(stored(station)) == 2


# -- recipes ------------------------------------------------------------------------------------


def more_products(station: Station) -> None:
    with station.database.writing() as session:
        now = session.get(Product, 1).created  # type: ignore[union-attr]  # it is there
        session.add(Product(id=2, name="cap", number=8, barcode="4006381333931", created=now))


def makes(station: Station) -> int | None:
    with station.database.reading() as session:
        found = session.get(Setting, "line")
        return found.value["product"] if found else None


async def test_a_register_switches_the_product(tmp_path: Path, video: Path) -> None:
    port = free_port()
    recipe = {"type": "modbus", "host": "127.0.0.1", "port": port, "holding_register": 64}
    source = camera(video, product="", recipe=recipe | {"poll": 0.01})
    output = {"type": "modbus", "name": "plc", "port": port}
    async with a_station(tmp_path, sources=[source], outputs=[output]) as station:
        more_products(station)
        async with outputs_running(station), running(station):
            client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=2)
            async with asyncio.timeout(5):
                while not await client.connect():
                    await asyncio.sleep(0.01)
            for number, product in ((8, 2), (7, 1)):
                began = time.monotonic()
                await client.write_register(64, number)
                async with asyncio.timeout(5):
                    while (await client.read_holding_registers(2)).registers != [number]:
                        await asyncio.sleep(0.005)
                assert time.monotonic() - began < 1
                await ready(station)
                assert (await station.triggers["top"](None)).product_id == product
            await client.write_register(64, 99)
            await until(lambda: "no product has the number 99" in " ".join(station.state.why))
            client.close()


async def test_a_message_switches_by_number_or_code(
    tmp_path: Path, video: Path, broker: Broker
) -> None:
    recipe = {"type": "mqtt", "port": broker.port, "topic": "line/recipe"}
    source = camera(video, product="", recipe=recipe)
    async with a_station(tmp_path, sources=[source]) as station:
        more_products(station)
        async with running(station), aiomqtt.Client("127.0.0.1", broker.port) as client:
            for text, product in (("7", 1), ("4006381333931", 2)):
                await client.publish("line/recipe", text, qos=1, retain=True)
                await until(lambda product=product: makes(station) == product)


def with_code(text: str) -> bytes:
    code = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.QRCode).to_image(scale=4)
    grey = np.pad(np.asarray(code), 20, constant_values=255)
    return as_png(np.ascontiguousarray(grey))


async def test_a_code_in_the_picture_chooses_the_product(tmp_path: Path) -> None:
    assert barcodes(with_code("4006381333931")) == ["4006381333931"]
    assert barcodes(b"nonsense") == barcodes(png(1)) == []
    source = {"type": "folder", "name": "drop", "folder": tmp_path / "in", "settle": 0.0}
    source |= {"recipe": {"type": "barcode"}}
    (tmp_path / "in").mkdir()
    for name, text in (("a", "4006381333931"), ("b", "unknown")):
        (tmp_path / f"in/{name}.png").write_bytes(with_code(text))
        await asyncio.sleep(0.02)
    async with a_station(tmp_path / "s", sources=[source]) as station:
        more_products(station)
        async with running(station):
            await until(lambda: len(stored(station)) == 2)
    first, second = sorted(stored(station), key=lambda one: one.meta["file"])
    assert (first.product_id, first.reason.partition(":")[0]) == (2, "no-model")
    assert "no code of a product: unknown" in second.reason
    assert second.picture_id is not None  # to be looked at


# -- real servers -------------------------------------------------------------------------------

RTSP = """
import gi, sys
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true ! video/x-raw,format=I420,width=160,height=120,framerate=25/1 "
    "! x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/line", factory)
server.attach(None)
GLib.MainLoop().run()
"""


def rtsp_server(port: int) -> subprocess.Popen[bytes]:
    check = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if subprocess.run([SYSTEM, "-c", check], capture_output=True, check=False).returncode:
        pytest.skip("GStreamer's RTSP server is not installed for the system's Python")
    process = subprocess.Popen([SYSTEM, "-c", RTSP, str(port)])
    until_ = time.monotonic() + 20
    while time.monotonic() < until_:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process
        time.sleep(0.05)
    raise TimeoutError("the RTSP server does not listen")


@pytest.mark.slow
async def test_a_network_camera_that_goes_away_comes_back(tmp_path: Path) -> None:
    port = free_port()
    server = rtsp_server(port)
    source = camera(f"rtsp://127.0.0.1:{port}/line", wait=3.0)
    try:
        async with a_station(tmp_path, sources=[source]) as station, running(station):
            await ready(station)
            found = await station.triggers["top"](None)
            assert picture(station, found).size == (160, 120)
            server.kill()
            server.wait()
            await until(lambda: station.state.blind, 20)
            found = await station.triggers["top"](None)
            assert (found.picture_id, found.told) == (None, "reject")
            server = rtsp_server(port)
            await until(lambda: not station.state.blind, 40)
            assert (await station.triggers["top"](None)).picture_id is not None
    finally:
        server.kill()
        server.wait()


def gige_camera() -> subprocess.Popen[bytes]:
    program = shutil.which("arv-fake-gv-camera-0.8")
    check = "import gi; gi.require_version('Aravis', '0.8')"
    if program is None or subprocess.run([SYSTEM, "-c", check], check=False).returncode:
        pytest.skip("Aravis is not installed: aravis-tools, gir1.2-aravis-0.8")
    return subprocess.Popen([program, "-i", "127.0.0.1"], stdout=subprocess.DEVNULL)


@pytest.mark.slow
async def test_a_gige_camera_that_goes_away_comes_back(tmp_path: Path) -> None:
    server = gige_camera()
    source = {"type": "genicam", "name": "top", "device": "127.0.0.1", "product": "tile"}
    source |= {"features": {"PixelFormat": "Mono8", "Width": 256, "ExposureTimeAbs": 5000}}
    try:
        async with a_station(tmp_path, sources=[source]) as station, running(station):
            await ready(station)
            found = await station.triggers["top"](None)
            kept = picture(station, found)
            assert (kept.size, kept.mode) == ((256, 512), "L")
            assert np.asarray(kept).std() > 1
            server.kill()
            server.wait()
            await until(lambda: station.state.blind, 20)
            assert (await station.triggers["top"](None)).picture_id is None
            server = gige_camera()
            await until(lambda: not station.state.blind, 40)
            assert (await station.triggers["top"](None)).picture_id is not None
    finally:
        server.kill()
        server.wait()


def test_pixel_formats() -> None:
    rgb = bytes([10, 20, 30] * 4)
    assert as_array(rgb, 2, 2, "RGB8")[0, 0].tolist() == [30, 20, 10]
    assert as_array(rgb, 2, 2, "BGR8")[0, 0].tolist() == [10, 20, 30]
    deep = np.array([[0, 4095]], "<u2").tobytes()
    assert as_array(deep, 2, 1, "Mono12").tolist() == [[0, 65520]]
    assert as_array(bytes(range(4)), 2, 2, "Mono8").tolist() == [[0, 1], [2, 3]]
    red = np.zeros((8, 8), np.uint8)
    red[::2, ::2] = 200  # the red pixels of a sensor whose first row begins R, G
    assert as_array(red.tobytes(), 8, 8, "BayerRG8")[4, 4].tolist() == [0, 0, 200]
    with pytest.raises(NoPictureError, match=r"YUV422.* is not read; set features"):
        as_array(rgb, 2, 2, "YUV422_8")
    with pytest.raises(NoPictureError, match="12 bytes only"):
        as_array(rgb, 4, 4, "Mono8")
