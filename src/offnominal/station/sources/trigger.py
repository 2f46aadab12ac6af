"""What asks a camera for a picture: a timer, a message, a coil of a PLC, a node of OPC UA.

While whoever triggers cannot be reached, parts pass that nobody is told of: the station is blind.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiomqtt
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from offnominal.extras import needs
from offnominal.station.outputs.queue import pause_after
from offnominal.station.sources.settings import (
    FrameTrigger,
    ModbusTrigger,
    MqttTrigger,
    OpcUaTrigger,
    TimerTrigger,
    TriggerSettings,
)
from offnominal.station.station import Station

__all__ = ["Fired", "persevere", "watch"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fired:
    """A trigger, with the part's serial number where it came with it."""

    serial: str | None = None


Fire = Callable[[Fired], Awaitable[None]]
"""Takes the picture; what comes of it is not waited for."""


async def watch(station: Station, source: str, trigger: TriggerSettings, fire: Fire) -> None:
    """Call ``fire`` for each trigger, until cancelled."""
    fact = f"trigger of {source}"
    match trigger:
        case TimerTrigger():
            await _timer(trigger, fire)
        case MqttTrigger():
            await persevere(station, fact, lambda well: _mqtt(trigger, fire, well))
        case ModbusTrigger():
            await persevere(station, fact, lambda well: _modbus(trigger, fire, well))
        case OpcUaTrigger():
            await persevere(station, fact, lambda well: _opcua(trigger, fire, well))
        case FrameTrigger():
            pass  # the camera's own frames


async def persevere(
    station: Station, fact: str, work: Callable[[Callable[[], None]], Awaitable[None]]
) -> None:
    """Do some work again and again, with pauses, and say how it stands.

    Parameters
    ----------
    station : Station
    fact : str
        Its name among the station's facts.
    work : callable
        Given what is to be called once it is connected; ends with an error only.
    """
    attempts = 0

    def well() -> None:
        nonlocal attempts
        attempts = 0
        station.state.tell(fact, True)

    station.state.tell(fact, False, "not connected yet")
    while True:
        try:
            await work(well)
        except Exception as error:  # libraries of four protocols raise what they like
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            attempts += 1
            words = f"{type(error).__name__}: {error}"
            station.state.tell(fact, False, words)
            log.warning("%s: %s", fact, words)
        await asyncio.sleep(min(pause_after(max(1, attempts)), 10.0))


async def _timer(trigger: TimerTrigger, fire: Fire) -> None:
    loop = asyncio.get_running_loop()
    at = loop.time()
    while True:
        at = max(at + trigger.seconds, loop.time())  # what was missed is not made up for
        await asyncio.sleep(at - loop.time())
        await fire(Fired())


async def _mqtt(trigger: MqttTrigger, fire: Fire, well: Callable[[], None]) -> None:
    async with trigger.client() as client:
        await client.subscribe(trigger.topic, qos=1)
        well()
        async for message in client.messages:
            if not message.retain:  # one that is retained is of a part long gone
                await fire(Fired(serial_of(message)))
    raise ConnectionError("the broker is gone")


def serial_of(message: aiomqtt.Message) -> str | None:
    """Text of a message, or ``serial`` of its JSON object."""
    payload = message.payload
    text = payload.decode(errors="replace") if isinstance(payload, bytes) else str(payload or "")
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text).get("serial")
        except ValueError:
            return None
        return None if found is None else str(found)
    return text.strip() or None


async def _modbus(trigger: ModbusTrigger, fire: Fire, well: Callable[[], None]) -> None:
    client = AsyncModbusTcpClient(
        trigger.host, port=trigger.port, timeout=2, retries=0, reconnect_delay=0
    )
    try:
        if not await client.connect():
            raise ConnectionError(f"{trigger.host}:{trigger.port} does not answer")
        before = True  # a coil that is 1 at the start is of a part that may be gone
        while True:
            answer = await client.read_coils(trigger.coil, device_id=trigger.unit)
            if answer.isError():
                raise ModbusException(f"coil {trigger.coil} cannot be read: {answer}")
            now = bool(answer.bits[0])
            well()
            if now and not before:
                await fire(Fired())
                if trigger.acknowledge is None:
                    await _set(client, trigger, trigger.coil, False)
                    now = False
                else:
                    await _set(client, trigger, trigger.acknowledge, True)
            elif before and not now and trigger.acknowledge is not None:
                await _set(client, trigger, trigger.acknowledge, False)
            before = now
            await asyncio.sleep(trigger.poll)
    finally:
        client.close()


async def _set(client: AsyncModbusTcpClient, trigger: ModbusTrigger, coil: int, on: bool) -> None:
    answer = await client.write_coil(coil, on, device_id=trigger.unit)
    if answer.isError():
        raise ModbusException(f"coil {coil} cannot be written: {answer}")


async def _opcua(trigger: OpcUaTrigger, fire: Fire, well: Callable[[], None]) -> None:
    changes: asyncio.Queue[Any] = asyncio.Queue(100)

    class Handler:
        def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
            changes.put_nowait(value)

    client = needs("asyncua", "opcua", "a trigger by OPC UA").Client(trigger.url, timeout=5)
    if trigger.user is not None:
        client.set_user(trigger.user)
    if trigger.password is not None:
        client.set_password(trigger.password.get_secret_value())
    async with client:
        subscription = await client.create_subscription(20, Handler())
        await subscription.subscribe_data_change(client.get_node(trigger.node))
        well()
        first = True
        while True:
            try:
                async with asyncio.timeout(2):
                    value = await changes.get()
            except TimeoutError:
                await client.check_connection()
                continue
            # The first value is what stands there; of a flag only its rise counts.
            if not first and value is not False:
                await fire(Fired())
            first = False
