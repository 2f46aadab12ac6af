"""Reading what an endpoint replies: the answer's text, or why there is none."""

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["LOG", "LONGEST_PAUSE", "NO_API", "Failure", "answer_text"]

Clean = Callable[[str], str]

LONGEST_PAUSE = 60.0
"""Seconds between two tries, at most."""
LOG = "the server's log may say why"
NO_API = "see whether endpoint is the base URL of an OpenAI-compatible API; it usually ends in /v1"


class Failure(Exception):  # noqa: N818 (one try failed; whether that is an error is yet open)
    """What became of one try.

    Parameters
    ----------
    reason, advice : str
    again : bool
        Whether another try may fare better.
    everywhere : bool
        Whether any other question would fare as badly.
    wait : float or None
        Seconds to wait before another try; None: as ``backoff`` has it.
    said : str or None
        The malformed answer; None: there was none.
    """

    def __init__(
        self,
        reason: str,
        advice: str,
        again: bool = True,
        everywhere: bool = False,
        wait: float | None = None,
        said: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.again = again
        self.everywhere = everywhere
        self.wait = wait
        self.said = said


def answer_text(status: int, headers: Mapping[str, str], reply: bytes, clean: Clean) -> str:
    """The answer's text, of a reply that has one.

    Parameters
    ----------
    status : int
    headers : mapping
        Asked for lower-case names.
    reply : bytes
    clean : callable
        Makes foreign text fit for a message.

    Raises
    ------
    Failure
        If there is none.
    """
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        found = None
    if status != 200:
        raise _refusal(status, headers, _message(found, reply, clean), clean)
    try:
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        ended = choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        reason = f"sent no chat completion ({_message(found, reply, clean)})"
        raise Failure(reason, NO_API) from None
    if refusal or ended == "content_filter":
        why = clean(str(refusal or "its content filter"))
        advice = "try another model, or a plainer class_name"
        raise Failure(f"the model refuses to answer: {why}", advice, again=False, said="")
    if ended == "length":
        raise Failure(
            "the answer is too long and was cut off",
            "raise max_tokens, and the server's context if that is what it filled",
            wait=0.0,
            said=text if isinstance(text, str) else "",
        )
    if not isinstance(text, str) or not text.strip():
        raise Failure("the answer is empty", "try another model", wait=0.0, said="")
    return text


def _refusal(status: int, headers: Mapping[str, str], message: str, clean: Clean) -> Failure:
    reason = f"refuses with status {status} ({message})"
    if status in (401, 403):
        advice = "name the environment variable that holds a valid key with key_variable"
        return Failure(reason, advice, again=False, everywhere=True)
    if status in (404, 405):
        advice = "see whether endpoint is the API's base URL, and whether it serves this model"
        return Failure(reason, advice, again=False, everywhere=True)
    if 300 <= status < 400:
        place = clean(headers.get("location", "elsewhere"))
        reason, advice = f"redirects to {place}", "if that is right, give it as endpoint"
        return Failure(reason, advice, again=False, everywhere=True)
    if status in (408, 429) or status >= 500:
        wait = _retry_after(headers)
        if wait is not None and wait > LONGEST_PAUSE:
            return Failure(reason, f"it asks for {wait:.0f} s: come back then", again=False)
        return Failure(reason, "lower concurrency" if status == 429 else LOG, wait=wait)
    advice = (
        "if it cannot hold an answer to a schema, set response_format to json_object or none; "
        "if the request is too large, lower max_side or references"
    )
    return Failure(reason, advice, again=False)


def _message(found: object, reply: bytes, clean: Clean) -> str:
    """What a reply says, in its own words: the API's error message, or how it begins."""
    error = found.get("error", found) if isinstance(found, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    if not isinstance(text, str):
        text = reply.decode("utf-8", errors="replace")
    return clean(text) or "empty"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        # A date without a zone is in UTC.
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
