"""Modbus TCP: signals that a PLC reads from the station, or that the station writes into a PLC."""

import asyncio
import logging
from contextlib import suppress

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from offnominal.station.outputs.queue import pause_after
from offnominal.station.outputs.settings import ModbusSettings
from offnominal.station.outputs.signals import Signals

__all__ = ["FREE_COILS", "FREE_REGISTERS", "run"]

log = logging.getLogger(__name__)

FREE_COILS = range(32, 48)
"""Coils of the server that a PLC may write: triggers, for instance."""
FREE_REGISTERS = range(64, 80)
"""Registers of the server that a PLC may write: the recipe's number, for instance."""

_WRITES = {5: FREE_COILS, 15: FREE_COILS, 6: FREE_REGISTERS, 16: FREE_REGISTERS}
_WRITES |= {22: FREE_REGISTERS}


async def run(signals: Signals, settings: ModbusSettings) -> None:
    """Show the signals until cancelled."""
    await (_serve if settings.mode == "server" else _write)(signals, settings)


async def _serve(signals: Signals, settings: ModbusSettings) -> None:
    name = f"output {settings.name}"

    async def action(
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Put the signals in their places before somebody reads; refuse writing over them."""
        if values is not None:
            free = _WRITES.get(function, range(0))
            fits = address in free and address + len(values) - 1 in free
            return None if fits else ExcCodes.ILLEGAL_ADDRESS
        if function in (1, 2, 5, 15):  # what was written is read as well, to be answered
            registers[0] = sum(on << place for place, on in enumerate(signals.coils()))
        else:
            shown = signals.registers()
            registers[: len(shown)] = shown
        return None

    bits = [SimData(0, values=[False] * len(range(FREE_COILS.stop)), datatype=DataType.BITS)]
    words = [SimData(0, values=[0] * FREE_REGISTERS.stop, datatype=DataType.REGISTERS)]
    blocks = (bits, list(bits), words, list(words))
    attempts = 0
    while True:
        server = ModbusTcpServer(
            SimDevice(0, simdata=blocks, action=action), address=(settings.host, settings.port)
        )
        try:
            await server.serve_forever(background=True)
        except (RuntimeError, OSError):
            attempts += 1
            where = f"{settings.host}:{settings.port}"
            words_ = f"cannot listen on {where}; is the port taken, or below 1024?"
            signals.station.state.tell(name, False, words_, blinds=False)
            await asyncio.sleep(pause_after(attempts))
            continue
        signals.station.state.tell(name, True, blinds=False)
        try:
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            server.close()


async def _write(signals: Signals, settings: ModbusSettings) -> None:
    """Registers first, so that they are there when a coil changes."""
    name = f"output {settings.name}"
    attempts = 0
    while True:
        client = AsyncModbusTcpClient(
            settings.host, port=settings.port, timeout=2, retries=0, reconnect_delay=0
        )
        try:
            if not await client.connect():
                raise ConnectionError("the PLC does not answer")
            with signals.events.watching() as events:
                while True:
                    answers = [
                        await client.write_registers(
                            settings.registers, signals.registers(), device_id=settings.unit
                        ),
                        await client.write_coils(
                            settings.coils, signals.coils(), device_id=settings.unit
                        ),
                    ]
                    for answer in answers:
                        if answer.isError():
                            raise ConnectionError(f"the PLC refused it: {answer}")
                    attempts = 0
                    signals.station.state.tell(name, True, blinds=False)
                    await events.get()
                    with suppress(asyncio.QueueEmpty):  # only the newest counts
                        while True:
                            events.get_nowait()
        except (ModbusException, OSError) as error:
            attempts += 1
            words = f"{settings.host}:{settings.port}: {error}"
            signals.station.state.tell(name, False, words, blinds=False)
            log.warning("%s: %s", name, words)
            await asyncio.sleep(min(pause_after(attempts), 5.0))
        finally:
            client.close()
