"""Switching the product that the line makes: by a PLC's register, or by messages of a scanner."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from offnominal.errors import OptionError
from offnominal.station.inspection import recipes
from offnominal.station.sources.settings import ModbusRecipe, MqttRecipe, SourceSettings
from offnominal.station.sources.trigger import persevere, serial_of
from offnominal.station.station import Station

__all__ = ["follow"]

log = logging.getLogger(__name__)

Switch = Callable[[str], Awaitable[None]]


async def follow(station: Station, source: SourceSettings) -> None:
    """Switch when the source's recipe says so, until cancelled.

    A number or a code that no product has leaves the station blind until a known one comes: the
    line makes something that nobody here knows.
    """
    fact, by = f"recipe of {source.name}", f"source {source.name}"
    recipe = source.recipe

    async def switch(text: str) -> None:
        number = int(text) if text.isdecimal() and len(text) <= 9 else None
        try:
            try:
                if number is None:
                    raise OptionError(f"no number: {text[:50]!r}")
                await recipes.activate(station, number=number, by=by)
            except OptionError:
                if isinstance(recipe, ModbusRecipe):
                    raise
                await recipes.activate(station, barcode=text, by=by)
        except OptionError as error:
            log.error("%s: %s", by, error)
            station.state.tell(f"{fact} is known", False, str(error))
        else:
            station.state.tell(f"{fact} is known", True)

    if isinstance(recipe, ModbusRecipe):
        await persevere(station, fact, lambda well: _register(recipe, switch, well))
    elif isinstance(recipe, MqttRecipe):
        await persevere(station, fact, lambda well: _topic(recipe, switch, well))


async def _register(recipe: ModbusRecipe, switch: Switch, well: Callable[[], None]) -> None:
    client = AsyncModbusTcpClient(
        recipe.host, port=recipe.port, timeout=2, retries=0, reconnect_delay=0
    )
    try:
        if not await client.connect():
            raise ConnectionError(f"{recipe.host}:{recipe.port} does not answer")
        before = 0
        while True:
            place = recipe.holding_register
            answer = await client.read_holding_registers(place, device_id=recipe.unit)
            if answer.isError():
                raise ModbusException(f"register {place} cannot be read: {answer}")
            now = answer.registers[0]
            well()
            if now != before and now != 0:
                await switch(str(now))
            before = now
            await asyncio.sleep(recipe.poll)
    finally:
        client.close()


async def _topic(recipe: MqttRecipe, switch: Switch, well: Callable[[], None]) -> None:
    async with recipe.client() as client:
        await client.subscribe(recipe.topic, qos=1)
        well()
        # A message that is retained counts: it says what the line makes.
        async for message in client.messages:
            text = serial_of(message)
            if text is not None:
                await switch(text)
    raise ConnectionError("the broker is gone")
