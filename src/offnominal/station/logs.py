"""What the station's processes log: lines for people, or JSON for programs; on standard error."""

import logging
import sys
from typing import Literal

import structlog

__all__ = ["set_up_logs"]

# These say at INFO what they are asked for, with addresses that may hold what is nobody's business.
_QUIET = ("httpx", "httpcore", "alembic", "asyncua", "pymodbus", "uvicorn.access", "watchfiles")


def set_up_logs(how: Literal["text", "json"], process: str) -> None:
    """Have everything that this process logs written so; ``process`` is its name in each line."""

    def named(logger: object, method: str, event: structlog.typing.EventDict) -> dict[str, object]:
        return {"process": process} | dict(event)

    before: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        named,
    ]
    last: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta
    ]
    if how == "json":
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=last)
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):  # uvicorn's own handlers would say it twice
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
