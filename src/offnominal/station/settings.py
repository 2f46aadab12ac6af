"""What a station is told: in ``station.toml``, in the environment, on the command line."""

from collections.abc import Sequence
from datetime import time
from ipaddress import ip_network
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from offnominal.station.outputs.settings import OutputSettings
from offnominal.station.sources.settings import FolderSettings, SourceSettings

__all__ = ["FailSafe", "Settings"]

FailSafe = Literal["reject", "stop"]


class Settings(BaseSettings):
    """All of them, checked.

    What the command line gives goes before the environment (``OFFNOMINAL_STATION_PORT=9000``), and
    that before the file ``station.toml`` in the station's folder.
    """

    model_config = SettingsConfigDict(
        env_prefix="OFFNOMINAL_STATION_",
        env_nested_delimiter="__",
        extra="forbid",
        hide_input_in_errors=True,  # a secret in the wrong place is not repeated
    )

    folder: Path = Path("station")
    """Everything the station keeps: database, pictures, models, its own secrets."""
    database: str = ""
    """URL of a database; empty: SQLite in the folder. ``postgresql+psycopg://user@host/name``."""
    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)
    """0: any that is free."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: list[str] = []
    """Addresses, or networks (``10.0.0.0/8``), whose ``X-Forwarded-*`` headers are believed."""
    admin_password_file: Path | None = None
    """File with the password of a first account ``admin``, made where there is none: for
    containers, whose browser is never on the same machine."""
    names: list[str] = []
    """Names by which browsers and programs reach the station, beside its own."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that judge."""
    threads: int = Field(0, ge=0, le=256)
    """Threads of each; 0: the cores, shared by the workers."""
    queue: int = Field(32, ge=1, le=10_000)
    """Pictures that may wait; beyond it the answer is 503 with Retry-After."""
    deadline: float = Field(10.0, gt=0, le=3600)
    """Seconds from the arrival of a picture to its verdict, where nobody says otherwise."""
    models: int = Field(4, ge=1, le=1000)
    """Models that a worker keeps warm."""
    fail_safe: FailSafe = "reject"
    """What the line is told of a part that could not be inspected."""
    heartbeat: float = Field(1.0, gt=0, le=60)
    """Seconds between two signs of life on outputs."""
    upload_bytes: int = Field(64 * 2**20, ge=1024)
    """Of one picture."""
    upload_pixels: int = Field(100_000_000, ge=1024)
    """Of one picture, by its header; more than 200 million are never read."""
    upload_files: int = Field(500, ge=1)
    """Of one form."""
    folders: list[Path] = []
    """Folders that pages may read pictures, weights and models from, on top of ``import`` in the
    station's own."""
    model_bytes: int = Field(4 * 2**30, ge=1024)
    """Of a model file from outside."""
    session_hours: float = Field(12.0, gt=0, le=24 * 30)
    shifts: list[str] = ["06:00", "14:00", "22:00"]
    """When shifts begin, in the station's own time."""
    timezone: str = ""
    """As in the IANA's list (``Europe/Berlin``); empty: the machine's."""
    language: Literal["en", "de", "zh", "ja"] = "en"
    log: Literal["text", "json"] = "text"
    sources: list[SourceSettings] = []
    outputs: list[OutputSettings] = []

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value or "UTC")
        except (OSError, ValueError, LookupError) as error:
            raise ValueError(
                f"no time zone {value!r}; give one such as Europe/Berlin, or none for the machine's"
            ) from error
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for one in value:
            try:
                ip_network(one)
            except ValueError as error:
                raise ValueError(
                    f"{error}; give the proxy's address such as 127.0.0.1, or a network such as "
                    "10.0.0.0/8"
                ) from error
        return value

    @field_validator("shifts")
    @classmethod
    def _are_times(cls, value: list[str]) -> list[str]:
        try:
            starts = {time.fromisoformat(one) for one in value}
        except ValueError as error:
            raise ValueError(f'{error}; give hours and minutes such as "06:00"') from error
        if not 1 <= len(value) <= 24 or len(starts) < len(value) or any(s.tzinfo for s in starts):
            raise ValueError('give 1 to 24 times of a day, each once, such as "06:00"')
        return value

    @field_validator("sources", "outputs")
    @classmethod
    def _named_once(cls, value: Sequence[SourceSettings | OutputSettings]) -> object:
        # A request of its own is from "http".
        names = ["http", *(one.name for one in value)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"the name {min(twice)!r} is there twice, or the station's own; give each another"
            )
        folders = [one.folder.resolve() for one in value if isinstance(one, FolderSettings)]
        if both := {str(folder) for folder in folders if folders.count(folder) > 1}:
            raise ValueError(f"two sources take pictures from {min(both)}; give each its own")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of what is believed."""
        given = init_settings() | {}
        folder = Path(given.get("folder") or env_settings().get("folder") or "station")
        file = TomlConfigSettingsSource(settings_cls, folder / "station.toml")
        return init_settings, env_settings, file

    @property
    def readable(self) -> list[Path]:
        """Folders that pages may read from, the station's own first."""
        return [self.folder.absolute() / "import", *self.folders]

    @property
    def database_url(self) -> str:
        """Where the records are."""
        return self.database or f"sqlite:///{(self.folder / 'station.sqlite').absolute()}"
