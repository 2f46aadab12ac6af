"""Results, state and heartbeat as messages to a broker.

``TOPIC/result`` has each result once, in order, as JSON, with quality of service 1. ``TOPIC/state``
is ``ready``, ``blind`` or ``offline``, retained; the broker itself says ``offline`` where the
station is gone. ``TOPIC/facts`` is what the state is made of, as JSON, retained.
``TOPIC/heartbeat`` counts up.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiomqtt

from offnominal.station.outputs.queue import Queue, Send, delivery_id, each
from offnominal.station.outputs.settings import MqttSettings
from offnominal.station.station import Station

__all__ = ["run"]

_BATCH = 16  # results that a kill at the worst moment sends a second time


async def run(station: Station, settings: MqttSettings) -> None:
    """Deliver until cancelled."""
    topic = settings.topic.rstrip("/")
    will = aiomqtt.Will(f"{topic}/state", "offline", qos=1, retain=True)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Send]:
        # A broker that is lost is noticed by the beat, which ends whoever waits for results.
        async with settings.client(will=will) as client, asyncio.TaskGroup() as group:
            beats = group.create_task(_beat(station, client, topic))

            async def publish(message: dict[str, Any]) -> None:
                told = message | {"delivery": delivery_id(settings.name, message["request"])}
                await client.publish(f"{topic}/result", json.dumps(told, allow_nan=False), qos=1)

            try:
                yield lambda messages: each(messages, publish)
            finally:
                beats.cancel()
                with suppress(aiomqtt.MqttError):
                    await client.publish(f"{topic}/state", "offline", qos=1, retain=True, timeout=2)

    await Queue(station, settings, _BATCH).run(connect)


async def _beat(station: Station, client: aiomqtt.Client, topic: str) -> None:
    said: dict[str, str] = {}
    count = 0
    with station.events.watching() as events:
        while True:
            facts = json.dumps([fact.as_json() for fact in station.state.facts])
            for name, text in (("state", station.state.word), ("facts", facts)):
                if said.get(name) != text:
                    await client.publish(f"{topic}/{name}", text, qos=1, retain=True)
                    said[name] = text
            count += 1
            await client.publish(f"{topic}/heartbeat", str(count), qos=0)
            with suppress(TimeoutError):
                async with asyncio.timeout(station.settings.heartbeat):
                    while (await events.get()).kind != "state":
                        pass
