"""``offnominal serve``: the station beside the line."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from offnominal.cli.terminal import say
from offnominal.errors import OptionError
from offnominal.extras import check_there

_NEEDED = (
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "argon2",
    "pydantic_settings",
    "structlog",
)


def serve(
    folder: Annotated[Path | None, "FOLDER"] = None,
    host: str | None = None,
    port: int | None = None,
    database: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    deadline: float | None = None,
    fail_safe: Literal["reject", "stop"] | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    log: Literal["text", "json"] | None = None,
    restore: Path | None = None,
) -> None:
    """Run a station: products, inspection and records, by browser and HTTP; stopped by Ctrl-C.

    What is not given is taken from the environment (OFFNOMINAL_STATION_PORT=9000), and then from
    FOLDER/station.toml, where all settings can be.

    Parameters
    ----------
    folder : path or None
        Where the station keeps everything; made where it is missing. Otherwise ./station.
    host : str or None
        Address to listen on; otherwise 127.0.0.1, which only this machine reaches.
    port : int or None
        Otherwise 8765; 0: any that is free.
    database : str or None
        URL of a PostgreSQL database; otherwise SQLite in the folder.
    workers : int or None
        Processes that judge; otherwise 1.
    threads : int or None
        Threads of each; otherwise the cores, shared by the workers.
    deadline : float or None
        Seconds from a picture to its verdict; otherwise 10.
    fail_safe : str or None
        What the line is told of a part that could not be inspected; otherwise reject.
    tls_cert : path or None
        Certificate, to speak HTTPS.
    tls_key : path or None
        Its key.
    log : str or None
        How lines are logged; otherwise text.
    restore : path or None
        A backup, of which the station is made first: FOLDER and the database have to be empty.
    """
    for module in _NEEDED:
        check_there(module, "`offnominal serve`")
    given: dict[str, Any] = {
        "folder": folder,
        "host": host,
        "port": port,
        "database": database,
        "workers": workers,
        "threads": threads,
        "deadline": deadline,
        "fail_safe": fail_safe,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "log": log,
    }
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None
    }
    from tomllib import TOMLDecodeError

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from offnominal.station.logs import set_up_logs
    from offnominal.station.supervisor import Supervisor

    try:
        if restore is not None:
            _restored(restore, options)
        station = Supervisor(options)
    except ValidationError as error:
        raise OptionError(_in_words(error, options)) from error
    except SettingsError as error:
        raise OptionError(f"the environment: {error}; give JSON, such as '[\"a\"]'") from error
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        told = f"{_file(options)}: no TOML in UTF-8 ({error}); mend that line"
        raise OptionError(told) from error
    set_up_logs(station.settings.log, "supervisor")
    if station.warning:
        say(f"warning: {station.warning}")
    typer.echo(f"Open {station.address}")
    if station.code:
        typer.echo(f"Set-up code: {station.code}")
    station.run()
    say("stopped; all results that were answered are kept")


def _restored(file: Path, options: dict[str, Any]) -> None:
    """Make the station of a backup, and see that it will use the records that were restored."""
    from offnominal.station.settings import Settings
    from offnominal.station.store.backup import restore

    into = Settings(**options)
    restore(file, into.folder, into.database)
    say(f"restored {file} into {into.folder}")
    if Settings(**options).database != into.database:
        raise OptionError(
            f"{into.folder / 'station.toml'}: its `database` is not the one that the records were "
            "restored into; mend that line, then start without --restore"
        )


def _file(options: dict[str, Any]) -> Path:
    folder = options.get("folder") or os.environ.get("OFFNOMINAL_STATION_FOLDER")
    return Path(folder or "station") / "station.toml"


def _in_words(error: Any, options: dict[str, Any]) -> str:
    """What is wrong with a setting, by the option, the variable or the file that it came from."""
    first = error.errors(include_url=False, include_input=False)[0]
    place, words = [str(part) for part in first["loc"]], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        words = "there is no such setting; mend its spelling, or take it out"
    if place and place[0] in options:
        return f"--{place[0].replace('_', '-')}: {words}"
    variable = f"OFFNOMINAL_STATION_{place[0].upper()}" if place else ""
    given = [name for name in os.environ if name.upper().split("__")[0] == variable]
    if len(place) > 1 and place[1].isdigit():  # as people count the tables of a file
        place[:2] = [f"{place[0]}, number {int(place[1]) + 1}"]
    return f"{given[0] if given else _file(options)}: {'.'.join(place)}: {words}"
