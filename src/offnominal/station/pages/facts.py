"""What the station knows of itself, and what it measured on a picture, in the reader's language."""

import re

from babel.numbers import format_decimal, format_percent

from offnominal.station.inspection.reasons import REASONS, code_of
from offnominal.station.language import _, ngettext, speaking
from offnominal.station.pages.words import why
from offnominal.station.state import State

__all__ = ["fact_name", "fact_words", "measured", "what_blinds"]


def fact_name(name: str) -> str:
    """A fact's name, as people read it; one that nobody knows as it stands."""
    known = {
        "workers": _("Workers"),
        "queue": _("Queue"),
        "records": _("Records"),
        "drift": _("Watch for drift"),
        "signals": _("Signals to the line"),
        "watch": _("Watch over the queue"),
    }
    named = {
        r"source (?P<name>.+)": _("Source %(name)s"),
        r"output (?P<name>.+)": _("Output %(name)s"),
        r"sight (?P<name>.+)": _("Sight of %(name)s"),
        r"trigger of (?P<name>.+)": _("Trigger of %(name)s"),
        r"product of (?P<name>.+)": _("Product of %(name)s"),
        r"recipe of (?P<name>.+) is known": _("Product of the recipe of %(name)s"),
        r"recipe of (?P<name>.+)": _("Recipe of %(name)s"),
    }
    return known.get(name) or _matched(name, named)


def fact_words(words: str) -> str:
    """What a fact says; errors of other programs stay in their own words."""
    code = code_of(words)
    if code in REASONS and words.startswith(f"{code}: {REASONS[code]}"):
        seen = measured(words)
        return f"{why(words)} {seen}" if seen else why(words)
    dropped = r"(?P<words>.*?)(; )?(?P<n>\d+) results were dropped"
    if found := re.fullmatch(dropped, words, re.DOTALL):
        number = int(found["n"])
        told = ngettext("%(n)s result was dropped", "%(n)s results were dropped", number)
        told %= {"n": format_decimal(number, locale=speaking.get())}
        return f"{fact_words(found['words'])}; {told}" if found["words"] else told
    return _matched(
        words,
        {
            r"(?P<there>\d+) of (?P<all>\d+)": _("%(there)s of %(all)s"),
            r"it is full": _("it is full"),
            r"not opened yet": _("not opened yet"),
            r"not connected yet": _("not connected yet"),
            r"they cannot be reached": _("they cannot be reached"),
            r"no picture yet": _("no picture yet"),
            r"no picture yet \((?P<why>.+)\)": _("no picture yet (%(why)s)"),
            r"no picture since (?P<time>[\d:]+)": _("no picture since %(time)s"),
            r"no picture since (?P<time>[\d:]+) \((?P<why>.+)\)": _(
                "no picture since %(time)s (%(why)s)"
            ),
            r"ended: (?P<why>.+)": _("ended: %(why)s"),
            r"cannot listen on (?P<place>\S+); is the port taken, or below 1024\?": _(
                "cannot listen on %(place)s; is the port taken, or below 1024?"
            ),
            r"(?P<place>\S+): the PLC does not answer": _("%(place)s: the PLC does not answer"),
        },
    )


def what_blinds(state: State) -> list[str]:
    """As :attr:`State.why`, in words for people."""
    return [
        f"{fact_name(one.name)}: {fact_words(one.words)}" if one.words else fact_name(one.name)
        for one in state.facts
        if one.blinds and not one.ok
    ]


def measured(reason: str) -> str:
    """What a reason says beside its code and that code's words: the values that were found."""
    beginning = f"{(code := code_of(reason))}: {REASONS.get(code, '')} ("
    if not reason.startswith(beginning):
        return ""
    seen, usual = r"(?P<seen>[\d.e+-]+%?)", r"(?P<usual>[\d.e+-]+%?)"
    return _matched(
        reason[len(beginning) :].removesuffix(")"),
        {
            rf"mean grey value {seen}, references {usual} and more": _(
                "mean grey value %(seen)s; references %(usual)s and more"
            ),
            rf"{seen} of it is white, of the references {usual}": _(
                "%(seen)s of it is white, of the references %(usual)s"
            ),
            rf"sharpness {seen}, references {usual} and more": _(
                "sharpness %(seen)s; references %(usual)s and more"
            ),
            rf"correlation {seen}, references {usual} and more": _(
                "correlation %(seen)s; references %(usual)s and more"
            ),
            r"(?P<width>\d+) x (?P<height>\d+) pixels, not (?P<across>\d+) x (?P<down>\d+)": _(
                "%(width)s × %(height)s pixels, not %(across)s × %(down)s"
            ),
            r"version (?P<number>\d+) is quarantined": _("version %(number)s is not accepted yet"),
            r"version (?P<number>\d+) is dropped": _("version %(number)s is dropped"),
        },
    )


def _matched(text: str, sentences: dict[str, str]) -> str:
    """The sentence of the first pattern that a text has, filled in; the text, where none fits."""
    for pattern, sentence in sentences.items():
        if found := re.fullmatch(pattern, text, re.DOTALL):
            values = found.groupdict()
            return sentence % {
                name: _number(value) if name in ("seen", "usual") else value
                for name, value in values.items()
            }
    return text


def _number(text: str) -> str:
    if text.endswith("%"):
        return format_percent(float(text[:-1]) / 100, locale=speaking.get())
    return format_decimal(float(text), "#,##0.######", locale=speaking.get())
