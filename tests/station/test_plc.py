"""What a line's own devices are told: by a real broker, Modbus and OPC UA on loopback."""

import asyncio
import json
import math
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from offnominal.station.outputs import queue
from offnominal.station.outputs.run import running
from offnominal.station.outputs.signals import COILS, REGISTERS
from tests.station.line import a_station, free_port, owed, store, until


class Broker:
    """mosquitto on a port of its own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        if program is None:
            pytest.skip("mosquitto is not installed")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n"
        )
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([self._program, "-c", self._config])
        until_ = time.monotonic() + 5
        while time.monotonic() < until_:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.01)
        raise TimeoutError("mosquitto does not listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(queue, "_LONGEST_PAUSE", 0.05)


class Listener:
    """Everything that is published, in order, for as long as it is entered."""

    def __init__(self, port: int) -> None:
        self.port, self.got = port, list[tuple[str, str]]()

    async def __aenter__(self) -> "Listener":
        self._client = aiomqtt.Client("127.0.0.1", self.port)
        await self._client.__aenter__()
        await self._client.subscribe("line/#", qos=1)
        self._task = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        with suppress(aiomqtt.MqttError):
            async for message in self._client.messages:
                assert isinstance(message.payload, bytes)
                self.got.append((str(message.topic), message.payload.decode()))

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(aiomqtt.MqttError):
            await self._client.__aexit__(None, None, None)

    def of(self, topic: str) -> list[str]:
        return [text for found, text in self.got if found == f"line/{topic}"]


def mqtt(broker: Broker) -> dict[str, Any]:
    return {"type": "mqtt", "name": "broker", "port": broker.port, "topic": "line"}


async def test_mqtt_has_each_result_once_in_order_although_the_broker_was_away(
    tmp_path: Path, broker: Broker
) -> None:
    async with a_station(tmp_path / "s", outputs=[mqtt(broker)]) as station:
        async with running(station):
            async with Listener(broker.port) as listener:
                store(station, "a")
                await until(lambda: owed(station) == 0 and listener.of("result"))
            broker.stop()
            for number in range(20):
                store(station, f"r{number}")
            await until(lambda: any(not fact.ok for fact in station.state.facts))
            # A station in this process must not send before somebody listens again.
            assert owed(station) == 20
        broker.start()
        async with Listener(broker.port) as listener, running(station):
            await until(lambda: owed(station) == 0)
            await until(lambda: len(listener.of("result")) >= 20)
            found = [json.loads(text) for text in listener.of("result")]
    assert [one["request"] for one in found] == [f"r{number}" for number in range(20)]
    assert found[0]["delivery"] == queue.delivery_id("broker", "r0")


async def test_mqtt_says_ready_blind_and_offline(tmp_path: Path, broker: Broker) -> None:
    async with (
        a_station(tmp_path / "s", outputs=[mqtt(broker)]) as station,
        Listener(broker.port) as listener,
    ):
        async with running(station):
            await until(lambda: listener.of("state") == ["ready"])
            station.state.tell("source top", False, "no picture since 12:00:00")
            await until(lambda: listener.of("state") == ["ready", "blind"])
            await until(lambda: len(listener.of("heartbeat")) > 3)
            facts = json.loads(listener.of("facts")[-1])
            assert ("source top", False) in [(one["name"], one["ok"]) for one in facts]
            station.state.tell("source top", True)
            await until(lambda: listener.of("state")[-1] == "ready")
        await until(lambda: listener.of("state")[-1] == "offline")
        beats = [int(text) for text in listener.of("heartbeat")]
        assert beats == list(range(1, len(beats) + 1))
        async with Listener(broker.port) as late:  # retained
            await until(lambda: late.of("state") == ["offline"])


@pytest.mark.slow
async def test_the_broker_says_offline_of_a_station_that_was_killed(
    tmp_path: Path, broker: Broker
) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.station.line import a_station\n"
        "from offnominal.station.outputs.run import running\n"
        "async def main():\n"
        f"    given = {{'type': 'mqtt', 'name': 'b', 'port': {broker.port}, 'topic': 'line'}}\n"
        f"    async with a_station(Path({str(tmp_path / 's')!r}), outputs=[given]) as station:\n"
        "        async with running(station):\n"
        "            await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    async with Listener(broker.port) as listener:
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
        try:
            await until(lambda: listener.of("state") == ["ready"], 30)
        finally:
            process.kill()
            process.wait()
        await until(lambda: listener.of("state") == ["ready", "offline"])


async def reader(port: int) -> AsyncModbusTcpClient:
    client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=2)
    async with asyncio.timeout(5):
        while not await client.connect():
            await asyncio.sleep(0.01)
    return client


async def coils(client: AsyncModbusTcpClient) -> dict[str, bool]:
    answer = await client.read_coils(0, count=len(COILS))
    return dict(zip(COILS, answer.bits, strict=False))


async def registers(client: AsyncModbusTcpClient) -> dict[str, int]:
    answer = await client.read_holding_registers(0, count=16)
    return {name: answer.registers[place] for name, place in REGISTERS.items()} | {
        "words": answer.registers  # type: ignore[dict-item]  # of two registers each
    }


async def until_coils(client: AsyncModbusTcpClient, **right: bool) -> dict[str, bool]:
    wanted = {name.replace("_", " "): on for name, on in right.items()}
    async with asyncio.timeout(5):
        while True:
            found = await coils(client)
            if wanted.items() <= found.items():
                return found
            await asyncio.sleep(0.005)


async def test_a_plc_reads_results_counters_and_the_heartbeat(tmp_path: Path) -> None:
    port = free_port()
    output = {"type": "modbus", "name": "plc", "port": port}
    async with a_station(tmp_path, outputs=[output]) as station, running(station):
        client = await reader(port)
        await until_coils(client, ready=True, fault=False, good=False, reject=False)
        store(station, "a")
        await until_coils(client, good=True, reject=False, new_result=True)
        number = store(station, "b", "reject", score=3.0, milliseconds=70_000.0)
        await until_coils(client, good=False, reject=True, new_result=False)
        found = await registers(client)
        words = found.pop("words")
        assert (found["results"], found["verdict"], words[8], words[10], words[12]) == (
            2,
            2,
            1,
            1,
            0,
        )
        assert found["score in thousandths of the threshold"] == 1500
        assert struct.unpack(">f", struct.pack(">HH", *words[5:7])) == (3.0,)
        assert (found["milliseconds"], words[15]) == (65535, number)
        inputs = await client.read_input_registers(0, count=16)
        assert inputs.registers[1:] == words[1:]
        beat = found["heartbeat"]
        async with asyncio.timeout(5):
            while (await registers(client))["heartbeat"] <= beat + 1:
                await asyncio.sleep(0.01)
        client.close()


async def test_not_inspected_and_blind_are_fail_safe(tmp_path: Path) -> None:
    port = free_port()
    output = {"type": "modbus", "name": "plc", "port": port}
    async with a_station(tmp_path / "r", outputs=[output]) as station, running(station):
        client = await reader(port)
        store(station, "a")
        await until_coils(client, good=True)
        station.state.tell("workers", False, "none is ready")
        found = await until_coils(client, ready=False)
        assert (found["good"], found["reject"], found["fault"]) == (False, True, True)
        station.state.tell("workers", True)
        await until_coils(client, ready=True, good=True, reject=False)
        store(station, "b", "not-inspected", score=None)
        found = await until_coils(client, not_inspected=True)
        assert (found["good"], found["reject"], found["line stop"]) == (False, True, False)
        words = (await registers(client)).pop("words")
        assert math.isnan(struct.unpack(">f", struct.pack(">HH", *words[5:7]))[0])
        client.close()
    given: dict[str, Any] = {"outputs": [output], "fail_safe": "stop"}
    async with a_station(tmp_path / "s", **given) as station, running(station):
        client = await reader(port)
        store(station, "c", "not-inspected")
        found = await until_coils(client, line_stop=True)
        assert (found["good"], found["reject"]) == (False, False)
        store(station, "d")
        await until_coils(client, line_stop=False, good=True)
        station.state.tell("source top", False, "no picture")
        await until_coils(client, line_stop=True, good=False, ready=False)
        client.close()


async def test_a_camera_that_shows_nothing_blinds_after_three_pictures(tmp_path: Path) -> None:
    dark = {"verdict": "not-inspected", "reason": "dark: the picture is darker", "source": "top"}
    async with a_station(tmp_path) as station, running(station):
        for number in range(2):
            store(station, f"d{number}", **dark)
        store(station, "e", source="top")
        for number in range(2, 4):
            store(station, f"d{number}", **dark)
        store(station, "f", "not-inspected", reason="worker: x", source="top")
        await until(lambda: b"inspection_seconds_count 6.0" in station.metrics.text())
        assert not station.state.blind
        store(station, "d4", **dark)
        await until(lambda: station.state.why == ["sight top: dark: the picture is darker"])
        store(station, "g", "reject", source="top")
        await until(lambda: not station.state.blind)


@pytest.mark.slow
async def test_shadow_mode_switches_nothing(tmp_path: Path) -> None:
    port = free_port()
    output = {"type": "modbus", "name": "plc", "port": port}
    async with a_station(tmp_path, outputs=[output]) as station, running(station):
        client = await reader(port)
        store(station, "a", "reject", told="nothing")
        store(station, "b")
        found = await until_coils(client, good=True)
        assert (found["reject"], (await registers(client))["results"]) == (False, 1)
        client.close()


async def test_a_plc_writes_where_it_may_and_nowhere_else(tmp_path: Path) -> None:
    port = free_port()
    output = {"type": "modbus", "name": "plc", "port": port}
    async with a_station(tmp_path, outputs=[output]) as station, running(station):
        client = await reader(port)
        for wrong in (
            client.write_coil(1, True),
            client.write_coils(30, [True] * 4),
            client.write_register(3, 1),
            client.write_registers(79, [1, 2]),
        ):
            assert (await wrong).isError()
        assert not (await client.write_coil(32, True)).isError()
        assert not (await client.write_registers(64, [3, 4])).isError()
        assert (await client.read_coils(31, count=3)).bits[:3] == [False, True, False]
        assert (await client.read_holding_registers(64, count=2)).registers == [3, 4]
        assert not (await coils(client))["good"]
        client.close()


async def plc(port: int) -> ModbusTcpServer:
    """Somebody else's device, with coils and registers that can be written."""
    bits = [SimData(0, values=[False] * 64, datatype=DataType.BITS)]
    words = [SimData(0, values=[0] * 64, datatype=DataType.REGISTERS)]
    device = SimDevice(0, simdata=(bits, bits, words, words))
    server = ModbusTcpServer(device, address=("127.0.0.1", port))
    await server.serve_forever(background=True)
    return server


async def test_signals_are_written_into_a_plc_again_after_it_was_away(tmp_path: Path) -> None:
    port = free_port()
    server = await plc(port)
    output = {"type": "modbus", "name": "plc", "mode": "client", "host": "127.0.0.1", "port": port}
    output |= {"coils": 10, "registers": 20}
    async with a_station(tmp_path, outputs=[output]) as station, running(station):
        client = await reader(port)
        store(station, "a")
        async with asyncio.timeout(5):
            while not (await client.read_coils(10, count=2)).bits[1]:
                await asyncio.sleep(0.01)
        assert (await client.read_holding_registers(21, count=3)).registers == [1, 0, 1]
        client.close()
        await server.shutdown()
        await until(lambda: any(not fact.ok for fact in station.state.facts))
        store(station, "b", "reject")
        server = await plc(port)
        client = await reader(port)
        async with asyncio.timeout(5):
            while not (await client.read_coils(10, count=2)).bits[0]:
                await asyncio.sleep(0.01)
        client.close()
    await server.shutdown()


@pytest.mark.slow
async def test_opc_ua_shows_state_recipe_and_results_and_announces_them(tmp_path: Path) -> None:
    asyncua = pytest.importorskip("asyncua")
    from offnominal.station.outputs.opcua import OWN, VISION

    port = free_port()
    output = {"type": "opcua", "name": "ua", "port": port}
    events: list[Any] = []

    class Handler:
        def event_notification(self, event: Any) -> None:
            events.append(event)

    async with a_station(tmp_path, outputs=[output]) as station, running(station):
        await until(lambda: any(fact.name == "output ua" for fact in station.state.facts), 60)
        async with asyncua.Client(f"opc.tcp://127.0.0.1:{port}/") as client:
            own = await client.get_namespace_index(OWN)
            vision = await client.get_namespace_index(VISION)

            async def value(*path: str) -> Any:
                node = await client.nodes.objects.get_child([f"{own}:Station", *path])
                return await node.read_value()

            machine = f"{vision}:VisionStateMachine"
            assert (await value(machine, "0:CurrentState")).Text == "Operational"
            event_type = await client.nodes.base_event_type.get_child(
                [f"{vision}:ResultReadyEventType"]
            )
            subscription = await client.create_subscription(20, Handler())
            top = await client.nodes.objects.get_child([f"{own}:Station"])
            await subscription.subscribe_events(top, event_type)
            beat = await value(f"{own}:Heartbeat")
            store(station, "a", "reject", serial="S1")
            await until(lambda: events)
            result = [f"{vision}:ResultManagement", f"{vision}:Results", f"{vision}:Result"]
            assert await value(*result, f"{vision}:ResultId") == "a"
            assert await value(*result, f"{vision}:PartId") == "S1"
            assert await value(*result, f"{own}:Verdict") == "reject"
            assert await value(f"{own}:Reject") is True
            assert json.loads(events[0].ResultContent)["request"] == "a"
            assert (events[0].Verdict, events[0].ResultState, events[0].Severity) == (
                *("reject", 1),
                500,
            )
            station.state.tell("source top", False, "no picture")
            async with asyncio.timeout(5):
                while (await value(machine, "0:CurrentState")).Text != "Error":
                    await asyncio.sleep(0.02)
            assert await value(f"{own}:Why") == "source top: no picture"
            assert await value(f"{own}:Heartbeat") > beat
            good = await client.nodes.objects.get_child([f"{own}:Station", f"{own}:Good"])
            with pytest.raises(asyncua.ua.UaError):  # nobody writes over what is shown
                await good.write_value(True)
