"""Where a chat model is reached: its base URL, its key, and what can go wrong there."""

import ipaddress
import os
import re
import shlex
from collections.abc import Collection
from urllib.parse import urlsplit

from offnominal.errors import ImageError, OffnominalError, OptionError

__all__ = [
    "AnswerError",
    "EndpointError",
    "check_endpoint",
    "check_key_variable",
    "confirmed",
    "is_loopback",
    "read_key",
]

# What a URL is written with (RFC 3986), but for what begins a query or a fragment.
_URL = re.compile(r"[A-Za-z0-9\-._~:/\[\]@!$&'()*+,;=%]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
    if not isinstance(endpoint, str):
        raise OptionError(f"endpoint {endpoint!r}: is no URL of a server; {advice}")
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
    if parts.scheme not in ("http", "https") or not host:
        raise OptionError(f"endpoint {endpoint!r}: is no URL of a server; {advice}")
    if not _URL.fullmatch(endpoint):  # letters that look like others, among them
        raise OptionError(
            f"endpoint {endpoint!a}: is no URL of a server, which is written with plain letters, "
            f"and a host of others as xn--...; {advice}"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise OptionError(f"endpoint {endpoint}: leave /chat/completions out; {advice}")
    return endpoint.rstrip("/")


def check_key_variable(variable: str | None, endpoint: str) -> str | None:
    """The name of an environment variable whose key may be sent to an endpoint; None for no key.

    Raises
    ------
    OptionError
        If it is no such name, or the key could be read on its way.
    """
    if not variable:
        return None
    if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
        raise OptionError(
            f"key_variable {variable!a}: is no name of an environment variable; give one such as "
            "OPENAI_API_KEY, and never the key itself"
        )
    if not endpoint.lower().startswith("https:") and not is_loopback(endpoint):
        raise OptionError(
            f"endpoint {endpoint}: the key in {variable} could be read on its way there; give an "
            "https address, or a tunnel's end on this machine, or leave key_variable out"
        )
    return variable


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


def confirmed(
    endpoint: str, key_variable: str | None, unconfirmed: Collection[str]
) -> tuple[str, str | None]:
    """An endpoint and its key, if a person has named, on this machine, where images and keys go.

    Parameters
    ----------
    endpoint : str
    key_variable : str or None
    unconfirmed : collection of str
        Which of the two nobody but a model file has named.

    Raises
    ------
    OptionError
        If there are any, saying what to type; and as the functions above.
    """
    endpoint = check_endpoint(endpoint)
    variable = check_key_variable(key_variable, endpoint)
    if not unconfirmed:
        return endpoint, read_key(variable)
    # A shell must read it as one word, since it is there to be copied.
    typed = f"--endpoint {shlex.quote(endpoint)}"
    with_key = ""
    if variable:
        with_key = f", with the key in the environment variable {variable}"
        typed += f" --key-variable {variable}"
    other = ", or --key-variable '' for no key" if "key_variable" in unconfirmed else ""
    raise OptionError(
        f"the model file names where pictures go: to {endpoint}{with_key}. A file alone does not "
        f"decide that. If it is right, say so with {typed}{other} (in Python: endpoint and "
        "key_variable of offnominal.load)"
    )


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this machine."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
