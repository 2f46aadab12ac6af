"""From a template to a page: with who asks, their language, and links of this station only."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from babel.dates import format_datetime
from babel.numbers import format_decimal, format_percent
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from offnominal._version import __version__
from offnominal.station.access.who import Who
from offnominal.station.language import LANGUAGES, _, ngettext, speaking
from offnominal.station.pages.facts import fact_name, fact_words, measured
from offnominal.station.pages.words import why
from offnominal.station.station import Station

__all__ = ["STATIC", "page"]

STATIC = Path(__file__).with_name("static")

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.i18n"],
)
_templates.install_gettext_callables(_, ngettext, newstyle=True)  # type: ignore[attr-defined]  # the extension adds it


def _number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, as the language writes numbers."""
    if value is None:
        return "–"
    rounded = float(f"{value:.{digits}g}")
    return format_decimal(rounded, "#,##0.######", locale=speaking.get())


def _percent(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return format_percent(value, f"0.{'#' * digits} %", locale=speaking.get())


def page(
    request: Request, template: str, who: Who | None, status: int = 200, **context: Any
) -> HTMLResponse:
    """A template as an answer.

    In templates: ``_`` and ``ngettext``, ``number``, ``percent``, ``why``, ``measured``,
    ``fact_name``, ``fact_words`` and ``moment`` (filters of values in the reader's language and the
    station's time), ``who``, ``language``,
    ``languages``, ``path``, ``version``.
    """
    station: Station = request.app.state.station
    zone = ZoneInfo(station.settings.timezone) if station.settings.timezone else None

    def moment(value: datetime | None, how: str = "medium") -> str:
        if value is None:
            return "–"
        return format_datetime(value.astimezone(zone), how, locale=speaking.get())

    words = {"fact_name": fact_name, "fact_words": fact_words, "measured": measured, "why": why}
    _templates.filters.update(number=_number, percent=_percent, **words)
    known = {
        "who": who,
        "language": speaking.get(),
        "languages": LANGUAGES,
        "path": request.url.path,
        "version": __version__,
        "moment": moment,
    }
    text = _templates.get_template(template).render(known | context)
    return HTMLResponse(text, status)
