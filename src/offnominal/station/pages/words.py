"""What a threshold promises, in the reader's language."""

from babel.numbers import format_decimal, format_percent

from offnominal.calibration import Threshold
from offnominal.station.inspection.reasons import code_of
from offnominal.station.language import _, ngettext, speaking
from offnominal.station.learning.models import wanted

__all__ = ["how_made", "percent", "promise", "promise_more", "why"]


def percent(rate: float) -> str:
    """A share, with so many digits as say something."""
    return format_percent(rate, "0 %" if rate >= 0.095 else "0.# %", locale=speaking.get())


def promise(threshold: Threshold | None) -> str:
    """What may be expected of the next good parts."""
    if threshold is None:
        return _("There is no threshold yet, so nothing can be rejected: give more good pictures.")
    if threshold.kind == "manual":
        return _(
            "The threshold was set by hand: nothing is promised of how many good parts it rejects."
        )
    if threshold.kind == "guess":
        return _("The threshold is a guess from one picture: nothing is promised.")
    told = {
        "rate": percent(threshold.false_reject),
        "count": format_decimal(threshold.count, locale=speaking.get()),
    }
    if threshold.kind == "conformal":
        return (
            ngettext(
                "Up to %(rate)s of good parts may be rejected: "
                "that is what %(count)s picture of a good part can promise.",
                "Up to %(rate)s of good parts may be rejected: "
                "that is what %(count)s pictures of good parts can promise.",
                threshold.count,
            )
            % told
        )
    if threshold.kind == "approximate":
        return (
            ngettext(
                "About %(rate)s of good parts are likely to be rejected, "
                "as %(count)s picture shows.",
                "About %(rate)s of good parts are likely to be rejected, "
                "as %(count)s pictures show.",
                threshold.count,
            )
            % told
        )
    told["tightest"] = percent(threshold.tightest)
    return (
        ngettext(
            "An estimate for %(rate)s of good parts: "
            "%(count)s picture can promise %(tightest)s at the tightest.",
            "An estimate for %(rate)s of good parts: "
            "%(count)s pictures can promise %(tightest)s at the tightest.",
            threshold.count,
        )
        % told
    )


def promise_more(threshold: Threshold | None) -> str:
    """How many more good pictures would promise less; empty where more change little."""
    if threshold is None or (more := wanted(threshold)) is None:
        return ""
    told = {"more": format_decimal(more[0], locale=speaking.get()), "rate": percent(more[1])}
    return (
        ngettext(
            "With %(more)s more good picture it could promise %(rate)s.",
            "With %(more)s more good pictures it could promise %(rate)s.",
            more[0],
        )
        % told
    )


def how_made(how: str) -> str:
    """What made a version, in words."""
    known = {
        "fit": _("learned anew"),
        "add": _("good parts added"),
        "forget": _("pictures forgotten"),
        "threshold": _("threshold set"),
        "upload": _("from a file"),
    }
    return known.get(how, how)


def why(reason: str) -> str:
    """Why a part was not inspected, and what to look at; what nobody knows as it stands."""
    known = {
        "unreadable": _("The picture cannot be read."),
        "no-picture": _("The source delivered no picture."),
        "no-model": _("The product has no live version."),
        "model": _("The model cannot be used."),
        "no-threshold": _("The model has no threshold."),
        "timeout": _("The deadline passed."),
        "worker": _("Two workers ended while they judged it."),
        "no-product": _("Nothing says which product it is."),
        "failed": _("Judging failed."),
        "dark": _("The picture is too dark: look at the light."),
        "bright": _("The picture is too bright: look at the light."),
        "blurred": _("The picture is blurred: look at the lens."),
        "frozen": _("The source repeats one picture: look at the camera."),
        "moved": _("The picture shows something else, or elsewhere: look at the part's place."),
        "size": _("The picture has another size: look at the camera's settings."),
    }
    return known.get(code_of(reason) or reason, reason)
