"""What of a source can be set."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from offnominal.station.connection import Broker, Named, Plc, Secret, UaServer

__all__ = [
    "CameraSettings",
    "FolderSettings",
    "GenicamSettings",
    "RecipeSettings",
    "SourceSettings",
    "TriggerSettings",
]


class TimerTrigger(BaseModel):
    """A picture every so many seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["timer"]
    seconds: float = Field(gt=0, le=86_400)


class FrameTrigger(BaseModel):
    """Every picture that the camera sends: it is triggered itself, by a light barrier."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["frame"]


class MqttTrigger(Broker):
    """A message; its text, or ``serial`` of its JSON, is the part's serial number."""

    type: Literal["mqtt"]
    topic: str = Field(min_length=1)


class ModbusTrigger(Plc):
    """A coil that goes from 0 to 1."""

    type: Literal["modbus"]
    coil: int = Field(ge=0, le=65535)
    acknowledge: int | None = Field(None, ge=0, le=65535)
    """A coil that is 1 from the picture until the trigger is 0 again; none: the trigger itself is
    set to 0."""
    poll: float = Field(0.02, ge=0.005, le=10)
    """Seconds between two looks."""


class OpcUaTrigger(UaServer):
    """A node that becomes true, or another number."""

    type: Literal["opcua"]
    node: str = Field(min_length=1)
    """Such as ``ns=2;s=Line.Trigger``."""


TriggerSettings = Annotated[
    TimerTrigger | FrameTrigger | MqttTrigger | ModbusTrigger | OpcUaTrigger,
    Field(discriminator="type"),
]


class BarcodeRecipe(BaseModel):
    """A code in the picture names the product."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["barcode"]


class ModbusRecipe(Plc):
    """A holding register has the recipe's number; 0: leave it."""

    type: Literal["modbus"]
    holding_register: int = Field(ge=0, le=65535)
    poll: float = Field(0.1, ge=0.005, le=10)


class MqttRecipe(Broker):
    """A message has the recipe's number, or the text of a code that a scanner read."""

    type: Literal["mqtt"]
    topic: str = Field(min_length=1)


RecipeSettings = Annotated[BarcodeRecipe | ModbusRecipe | MqttRecipe, Field(discriminator="type")]


class _Source(Named):
    product: str = ""
    """Its name; empty: the product that the line makes now."""
    recipe: RecipeSettings | None = None
    """What switches the product that the line makes."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "_Source":
        if self.product and self.recipe:
            raise ValueError("product and recipe: give one of them; a recipe chooses the product")
        return self


class FolderSettings(_Source):
    """A folder that pictures are put into."""

    type: Literal["folder"]
    folder: Path
    done: Path = Path("done")
    """Where pictures go when their result is stored; relative to the folder."""
    failed: Path = Path("failed")
    """Where those go that could not be inspected."""
    serial: str = ""
    """Regular expression whose first group, found in a file's name, is the serial number."""
    settle: float = Field(0.2, ge=0, le=60)
    """Seconds that a file's size and time have to stay before it counts as whole."""
    poll: bool = False
    """Look every second: for network drives, which tell nobody of changes."""

    @field_validator("serial")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        if not value:
            return value
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"serial: no regular expression ({error})") from error
        if groups != 1:
            raise ValueError(r"serial: give one group in brackets, such as ^(\w+)_")
        return value

    @model_validator(mode="after")
    def _go_elsewhere(self) -> "FolderSettings":
        for name, place in (("done", self.done), ("failed", self.failed)):
            if (self.folder / place).resolve() == self.folder.resolve():
                raise ValueError(
                    f"{name}: is the folder itself, where its pictures would be found again; give "
                    "another"
                )
        return self


class _Camera(_Source):
    trigger: TriggerSettings | None = None
    """What asks for a picture; none: ``POST /v1/sources/NAME/trigger`` alone, which always does."""
    wait: float = Field(2.0, gt=0, le=60)
    """Seconds after a trigger within which a picture has to come."""


class CameraSettings(_Camera):
    """A USB camera, a network stream or a video file, as OpenCV opens them."""

    type: Literal["camera"]
    device: int | str
    """Number of a USB camera, an ``rtsp://`` address, or a file."""
    loop: bool = False
    """A file begins again at its end: to try things out."""
    width: int | None = Field(None, ge=1, le=65535)
    height: int | None = Field(None, ge=1, le=65535)
    user: str | None = None
    """Of a network stream; not within its address, which stands in messages."""
    password: Secret | None = None

    @field_validator("device")
    @classmethod
    def _no_password(cls, value: int | str) -> int | str:
        if isinstance(value, str) and "@" in (urlsplit(value).netloc):
            raise ValueError("device: give user and password apart: user = ..., password = ...")
        return value

    @property
    def address(self) -> int | str:
        """With user and password, for OpenCV's eyes only."""
        if self.user is None or isinstance(self.device, int):
            return self.device
        word = quote(self.password.get_secret_value(), safe="") if self.password else ""
        scheme, _, rest = self.device.partition("://")
        return f"{scheme}://{quote(self.user, safe='')}:{word}@{rest}"


class GenicamSettings(_Camera):
    """A GigE Vision or USB3 Vision camera, by Aravis and the system's Python."""

    type: Literal["genicam"]
    device: str = ""
    """Its identifier or address, as ``arv-tool-0.8`` lists it; empty: the first one."""
    features: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Set when it is opened: ``{ExposureTime = 5000, TriggerMode = "On"}``."""
    python: Path = Path("/usr/bin/python3")
    """A Python that has PyGObject and Aravis's typelib."""


SourceSettings = Annotated[
    FolderSettings | CameraSettings | GenicamSettings, Field(discriminator="type")
]
"""One source of pictures."""
