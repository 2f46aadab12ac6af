"""A server of OPC UA, with nodes named after OPC 40100-1, Machine Vision, where they fit.

It is not the whole companion specification: no types, no methods, no configuration management. Its
names stand in the specification's namespace where they mean the same, and in the station's own
otherwise, so that a client finds state, recipe and result where the specification has them.

asyncua takes seconds to build the standard's own nodes, so that all of this has a thread and an
event loop of its own; what is shown comes from the station's loop, whose heartbeat it is.
"""

import asyncio
import json
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from offnominal._version import __version__
from offnominal.extras import needs
from offnominal.station.outputs.queue import pause_after
from offnominal.station.outputs.settings import OpcUaSettings
from offnominal.station.outputs.signals import Signals

__all__ = ["OWN", "VISION", "run"]

VISION = "http://opcfoundation.org/UA/MachineVision"
OWN = "urn:offnominal:station"

_COMPLETED, _FAILED = 1, 4  # ResultStateDataType, 12.19


async def run(signals: Signals, settings: OpcUaSettings) -> None:
    """Serve until cancelled."""
    _asyncua("asyncua")
    name, attempts = f"output {settings.name}", 0
    while True:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
        thread.start()

        async def there(work: Any, loop: asyncio.AbstractEventLoop = loop) -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

        nodes = Nodes(settings)
        try:
            with signals.events.watching() as events:
                await there(nodes.start())
                await there(nodes.show(_values(signals)))
                signals.station.state.tell(name, True, blinds=False)
                attempts = 0
                while True:
                    event = await events.get()
                    await there(nodes.show(_values(signals)))
                    if event.kind == "result":
                        await there(nodes.announce(event.data["message"]))
        except OSError as error:
            attempts += 1
            words = f"cannot listen on {settings.host}:{settings.port} ({error})"
            signals.station.state.tell(name, False, words, blinds=False)
        finally:
            with suppress(Exception):
                await there(nodes.stop())
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)
        await asyncio.sleep(pause_after(attempts))


def _values(signals: Signals) -> dict[str, Any]:
    """What the nodes show; by their names in :class:`Nodes`."""
    state = signals.station.state
    shown: dict[str, Any] = {
        "state": "Error" if state.blind else "Operational",
        "mode": "Initialized" if state.blind else "Ready",
        "ready": not state.blind,
        "why": "; ".join(state.why),
        "heartbeat": signals.beats % 2**32,
        "recipe": signals.recipe,
        "coils": dict(zip(("reject", "good", "", "stop"), signals.coils(), strict=False)),
    }
    if signals.last is not None:
        shown |= _result(signals.last)
    return shown


def _result(told: dict[str, Any]) -> dict[str, Any]:
    return {
        "ResultId": told["request"],
        "IsPartial": False,
        "IsSimulated": False,
        "ResultState": _FAILED if told["verdict"] == "not-inspected" else _COMPLETED,
        "PartId": told["serial"] or "",
        "InternalRecipeId": f"{told['product']}/{told['version'] or 0}",
        "ProductId": told["product"],
        "CreationTime": datetime.fromisoformat(told["finished"]).astimezone(UTC),
        "ResultContent": json.dumps(told, allow_nan=False),
        "Verdict": told["verdict"],
        "Told": told["told"],
        "Score": told["score"] if told["score"] is not None else float("nan"),
    }


def _asyncua(module: str) -> Any:
    return needs(module, "opcua", "an output of OPC UA")


class Nodes:
    """The server and its nodes; everything here runs in its thread.

    Parameters
    ----------
    settings : OpcUaSettings
    """

    def __init__(self, settings: OpcUaSettings) -> None:
        self._settings = settings
        self._server: Any = None
        self._nodes: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._event: Any = None

    async def start(self) -> None:
        """Build the nodes, then listen."""
        ua, settings = _asyncua("asyncua.ua"), self._settings
        server = _asyncua("asyncua").Server()
        await server.init()
        self._server = server
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}/")
        server.set_server_name("Offnominal station")
        await server.set_build_info("", "", "Offnominal", __version__, "", datetime.now(UTC))
        server.set_identity_tokens([ua.AnonymousIdentityToken])
        policy = ua.SecurityPolicyType.NoSecurity
        if settings.certificate is not None and settings.key is not None:
            policy = ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt
            await server.load_certificate(settings.certificate)
            await server.load_private_key(settings.key)
        server.set_security_policy([policy])
        own = await server.register_namespace(OWN)
        vision = await server.register_namespace(VISION)
        await self._build(own, vision)
        await server.start()

    async def _build(self, own: int, vision: int) -> None:
        ua = _asyncua("asyncua.ua")
        kind = ua.VariantType

        async def folder(parent: Any, name: str, namespace: int) -> Any:
            return await parent.add_object(
                ua.NodeId(f"{parent.nodeid.Identifier}/{name}", own),
                ua.QualifiedName(name, namespace),
            )

        async def variable(
            parent: Any, name: str, namespace: int, value: Any, variant: Any, key: str
        ) -> None:
            self._nodes[key] = await parent.add_variable(
                ua.NodeId(f"{parent.nodeid.Identifier}/{name}", own),
                ua.QualifiedName(name, namespace),
                value,
                varianttype=variant,
            )

        objects = self._server.nodes.objects
        top = await objects.add_object(ua.NodeId("Station", own), ua.QualifiedName("Station", own))
        machine = await folder(top, "VisionStateMachine", vision)
        mode = await folder(machine, "AutomaticModeStateMachine", vision)
        none = ua.LocalizedText("")
        await variable(machine, "CurrentState", 0, none, kind.LocalizedText, "state")
        await variable(mode, "CurrentState", 0, none, kind.LocalizedText, "mode")
        await variable(top, "Ready", own, False, kind.Boolean, "ready")
        await variable(top, "Why", own, "", kind.String, "why")
        await variable(top, "Heartbeat", own, 0, kind.UInt32, "heartbeat")
        for name, key in (("Reject", "reject"), ("Good", "good"), ("LineStop", "stop")):
            await variable(top, name, own, False, kind.Boolean, key)
        recipes = await folder(top, "RecipeManagement", vision)
        await variable(recipes, "ActiveRecipeNumber", own, 0, kind.UInt16, "recipe")
        results = await folder(await folder(top, "ResultManagement", vision), "Results", vision)
        last = await folder(results, "Result", vision)
        fields = {
            **dict.fromkeys(("ResultId", "PartId", "InternalRecipeId"), ("", kind.String)),
            **dict.fromkeys(("ProductId", "ResultContent"), ("", kind.String)),
            **dict.fromkeys(("IsPartial", "IsSimulated"), (False, kind.Boolean)),
            "ResultState": (0, kind.Int32),
            "CreationTime": (datetime.fromtimestamp(0, UTC), kind.DateTime),
        }
        for name, (value, variant) in fields.items():
            await variable(last, name, vision, value, variant, name)
        more: dict[str, tuple[Any, Any]] = {"Verdict": ("", kind.String), "Told": ("", kind.String)}
        more["Score"] = (float("nan"), kind.Double)
        for name, (value, variant) in more.items():
            await variable(last, name, own, value, variant, name)
        event = await self._server.create_custom_event_type(
            ua.NodeId("ResultReadyEventType", own),
            ua.QualifiedName("ResultReadyEventType", vision),
        )
        for names, namespace in ((fields, vision), (more, own)):
            for name, (value, variant) in names.items():
                called = ua.QualifiedName(name, namespace)
                await event.add_property(
                    ua.NodeId(f"ResultReadyEventType/{name}", own), called, value, variant
                )
        self._event = await self._server.get_event_generator(event, emitting_node=top.nodeid)
        # Clients subscribe to the server, and hear of what its objects say.
        await self._server.nodes.server.set_event_notifier([ua.EventNotifier.SubscribeToEvents])

    async def show(self, values: dict[str, Any]) -> None:
        """Write what changed."""
        ua = _asyncua("asyncua.ua")
        values = values | values.get("coils", {})
        for key, node in self._nodes.items():
            if key not in values or self._shown.get(key) == values[key]:
                continue
            value = values[key]
            if key in ("state", "mode"):
                value = ua.LocalizedText(value)
            variant = (await node.read_data_value()).Value.VariantType
            await node.write_value(ua.DataValue(ua.Variant(value, variant)))
            self._shown[key] = values[key]

    async def announce(self, told: dict[str, Any]) -> None:
        """The event that a result is there, with the result."""
        found = _result(told)
        for name, value in found.items():
            setattr(self._event.event, name, value)
        severity = {"good": 1, "reject": 500}.get(told["verdict"], 800)
        self._event.event.Severity = severity
        await self._event.trigger(message=f"{told['product']}: {told['verdict']}")

    async def stop(self) -> None:
        """Let go of all clients."""
        if self._server is not None:
            await self._server.stop()
