"""What of an output can be set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from offnominal.station.connection import Broker, Named, Secret

__all__ = [
    "FilesSettings",
    "ModbusSettings",
    "MqttSettings",
    "OpcUaSettings",
    "OutputSettings",
    "Queued",
    "WebhookSettings",
    "queued",
]


class _Queued(BaseModel):
    keep: int = Field(100_000, ge=1)
    """Results that may be owed; beyond it the oldest are dropped, counted and shown: a line does
    not stand still for a receiver that is away."""


class WebhookSettings(Named, _Queued):
    """A POST of JSON for each result."""

    type: Literal["webhook"]
    url: str = Field(pattern=r"^https?://")
    secret: Secret | None = None
    """Key of the signature."""
    ca: Path | None = None
    """Certificates that the receiver's own is checked against; none: certifi's."""
    timeout: float = Field(10.0, gt=0, le=300)


class MqttSettings(Named, Broker, _Queued):
    """Messages to a broker."""

    type: Literal["mqtt"]
    topic: str = Field(min_length=1, pattern=r"^[^#+]+$")
    """``TOPIC/result``, ``TOPIC/state``, ``TOPIC/facts``, ``TOPIC/heartbeat``."""


class ModbusSettings(Named):
    """Coils and registers: in the station, where a PLC reads them, or written into a PLC."""

    type: Literal["modbus"]
    mode: Literal["server", "client"] = "server"
    host: str = "127.0.0.1"
    """Of a server, the address that it listens on; of a client, the PLC's."""
    port: int = Field(5020, ge=0, le=65535)
    unit: int = Field(1, ge=0, le=255)
    """Of the PLC; a server answers to all."""
    coils: int = Field(0, ge=0, le=65000)
    """Where the coils begin in the PLC, counted from 0."""
    registers: int = Field(0, ge=0, le=65000)
    """Where the holding registers begin in the PLC."""


class OpcUaSettings(Named):
    """A server of OPC UA, with nodes after OPC 40100-1."""

    type: Literal["opcua"]
    host: str = "127.0.0.1"
    port: int = Field(4840, ge=0, le=65535)
    certificate: Path | None = None
    """With it and its key, clients have to sign and encrypt."""
    key: Path | None = None

    @model_validator(mode="after")
    def _both(self) -> "OpcUaSettings":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: give both, or neither")
        return self


class FilesSettings(Named, _Queued):
    """A file for each day."""

    type: Literal["files"]
    folder: Path
    format: Literal["csv", "parquet"] = "csv"
    every: float = Field(60.0, gt=0, le=3600)
    """Seconds between two pieces of Parquet; CSV is written at once."""


OutputSettings = Annotated[
    WebhookSettings | MqttSettings | ModbusSettings | OpcUaSettings | FilesSettings,
    Field(discriminator="type"),
]
"""One output."""
Queued = WebhookSettings | MqttSettings | FilesSettings
"""Outputs that are owed every result.

Those that show how things stand now, of Modbus and OPC UA, are owed nothing: a verdict that reaches
a PLC a minute late would belong to another part.
"""


def queued(outputs: Sequence[OutputSettings]) -> list[str]:
    """Names of those that are owed every result."""
    return [one.name for one in outputs if isinstance(one, Queued)]
