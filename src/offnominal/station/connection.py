"""How a broker, a PLC or an OPC UA server is reached; secrets by reference, never in the file."""

import os
import ssl
from pathlib import Path
from typing import Annotated, Any

import aiomqtt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

__all__ = ["Broker", "Named", "Plc", "Secret", "UaServer"]


def _looked_up(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value
    kind, _, name = str(value).partition(":")
    if kind == "env" and name:
        found = os.environ.get(name)
        if not found:
            raise ValueError(f"the environment has no {name}; set it, or give file:/PATH")
        return SecretStr(found)
    if kind == "file" and name:
        try:
            found = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} cannot be read ({error}); give a file of text") from error
        if not found:
            raise ValueError(f"{name} is empty; write the secret into it")
        return SecretStr(found)
    # The value itself is not repeated: it may be the secret.
    raise ValueError("give env:NAME or file:/PATH; secrets do not stand in settings themselves")


Secret = Annotated[SecretStr, BeforeValidator(_looked_up)]
"""``env:NAME`` or ``file:/PATH``; what stands there is read once, and never shown."""


class Named(BaseModel):
    """What has a name, by which records and messages call it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}$")


class Broker(BaseModel):
    """Of MQTT."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    host: str = "127.0.0.1"
    port: int = Field(1883, ge=1, le=65535)
    user: str | None = None
    password: Secret | None = None
    tls: bool = False
    ca: Path | None = None
    """Certificates that the broker's own is checked against; none: the system's."""

    def client(self, **more: Any) -> aiomqtt.Client:
        """Not yet connected."""
        context = None
        if self.tls:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        return aiomqtt.Client(
            self.host,
            self.port,
            username=self.user,
            password=self.password.get_secret_value() if self.password else None,
            tls_context=context,
            timeout=10,
            keepalive=10,
            **more,
        )


class Plc(BaseModel):
    """A device that is reached by Modbus TCP; addresses count from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    host: str
    port: int = Field(502, ge=1, le=65535)
    unit: int = Field(1, ge=0, le=255)


class UaServer(BaseModel):
    """A server of OPC UA."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    url: str = Field(pattern=r"^opc\.tcp://")
    user: str | None = None
    password: Secret | None = None
