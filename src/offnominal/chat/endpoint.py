"""Where a chat model is reached: its base URL, its key, and what can go wrong there."""

import os
from urllib.parse import urlsplit

from offnominal.errors import ImageError, OffnominalError, OptionError

__all__ = ["AnswerError", "EndpointError", "check_endpoint", "read_key"]


class EndpointError(OffnominalError):
    """A chat model's endpoint cannot be used: not there, refuses the key, or never answers."""


class AnswerError(ImageError):
    """An image got no answer that can be used, so it has no score.

    Parameters
    ----------
    source : str
        The file, or a description of the array.
    reason : str
        What went wrong and what to do, without the source's name.
    answered : bool
        Whether the model said something that is no valid answer; False: nothing came from it.
    """

    def __init__(self, source: object, reason: str, answered: bool) -> None:
        super().__init__(source, reason)
        self.answered = answered


def check_endpoint(endpoint: str) -> str:
    """A base URL without the slash at its end.

    Raises
    ------
    OptionError
        If it is none, or holds what belongs elsewhere: a key, a query, the path of one function.
        The message never repeats a part that could be secret.
    """
    advice = "give a base URL such as http://127.0.0.1:8080/v1"
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port  # a port that is no number raises here
    except ValueError as error:
        raise OptionError(f"endpoint: is no URL; {advice}") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise OptionError(
            f"endpoint {parts.scheme}://{host}: holds a user name, a password or a query, which "
            f"would be stored; {advice}, and name the variable that holds a key with key_variable"
        )
    if parts.scheme not in ("http", "https") or not host or not endpoint.isprintable():
        raise OptionError(f"endpoint {endpoint!r}: is no URL of a server; {advice}")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise OptionError(f"endpoint {endpoint}: leave /chat/completions out; {advice}")
    return endpoint.rstrip("/")


def read_key(variable: str | None) -> str | None:
    """The key that an environment variable holds; None where no variable is named.

    Raises
    ------
    OptionError
        If the variable is not set, or holds what cannot be a key. The content is never shown.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()) or " " in key:
        raise OptionError(
            f"key_variable {variable}: this environment variable is not set, or holds what is no "
            "key; set it to the endpoint's key alone, or leave key_variable out"
        )
    return key
