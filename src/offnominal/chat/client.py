"""Sending questions to an OpenAI-compatible endpoint, with patience and within limits.

The protocol is ``POST {endpoint}/chat/completions`` as OpenAI's API reference has it and as the
servers of llama.cpp, vLLM and Ollama speak it.
"""

import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx2

from offnominal._version import __version__
from offnominal.chat.answer import MalformedError
from offnominal.chat.endpoint import EndpointError, is_loopback
from offnominal.chat.prompt import correction
from offnominal.chat.reply import LOG, LONGEST_PAUSE, NO_API, Failure, answer_text
from offnominal.errors import OffnominalError

__all__ = ["Client", "NoAnswerError"]

T = TypeVar("T")

_LARGEST_REPLY = 4 * 2**20  # bytes; an answer has a few hundred
_CONNECT = 10.0  # seconds in which a connection must stand
_EXCERPT = 200  # characters of foreign text in a message


class NoAnswerError(OffnominalError):
    """One question has no usable answer.

    Parameters
    ----------
    reason : str
    answered : bool
        Whether the model said something that is no valid answer; False: nothing came from it.
    """

    def __init__(self, reason: str, answered: bool) -> None:
        super().__init__(reason)
        self.answered = answered


class Client:
    """A connection to an endpoint; an asynchronous context manager.

    Parameters
    ----------
    endpoint : str
        Base URL, checked by :func:`~offnominal.chat.endpoint.check_endpoint`.
    key : str or None
        Sent as bearer token, and blotted out wherever the endpoint repeats it.
    timeout : float
        Seconds for one request, from the connection to the last byte of the reply.
    retries : int
        Further tries after a failed one, for whatever reason it failed.
    backoff : float
        Seconds before the first further try, doubled each time up to
        :data:`~offnominal.chat.reply.LONGEST_PAUSE`. Where the endpoint names a time
        (``Retry-After``), that is waited instead.
    """

    def __init__(
        self,
        endpoint: str,
        key: str | None,
        timeout: float,
        retries: int,
        backoff: float,
    ) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self._key = key
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"offnominal/{__version__}",
        }
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        # Redirects are not followed: images and keys go where the user said, and nowhere else. A
        # proxy of the environment is for hosts outside; it would not find this machine's own.
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT, timeout)),
            limits=httpx2.Limits(max_connections=None),
            trust_env=not is_loopback(endpoint),
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)

    async def ask(self, body: Mapping[str, Any], parse: Callable[[str], T]) -> T:
        """The answer to one question.

        Parameters
        ----------
        body : mapping
            The request, with ``messages``.
        parse : callable
            Makes of the answer's text what is returned; a :class:`MalformedError` is told to the
            model, which is asked again.

        Raises
        ------
        NoAnswerError
            If there is no usable answer after all tries.
        EndpointError
            If no other question would get one either.
        """
        tries = 0
        while True:
            tries += 1
            try:
                return await self._try(body, parse)
            except Failure as failure:
                if not failure.again or tries > self.retries:
                    raise self._final(failure, tries) from None
                pause = failure.wait
                if pause is None:
                    pause = self.backoff * 2.0 ** min(tries - 1, 30)
                if failure.said is not None:
                    told = correction(failure.said, failure.reason)
                    body = {**body, "messages": [body["messages"][0], *told]}
            await anyio.sleep(min(pause, LONGEST_PAUSE))

    def _final(self, failure: Failure, tries: int) -> OffnominalError:
        times = f" ({tries} tries)" if tries > 1 else ""
        begins = f", beginning {self._clean(failure.said, 60)!r}" if failure.said else ""
        text = f"{self.endpoint}: {failure.reason}{begins}{times}; {failure.advice}"
        if failure.everywhere:
            return EndpointError(text)
        return NoAnswerError(text, failure.said is not None)

    async def _try(self, body: Mapping[str, Any], parse: Callable[[str], T]) -> T:
        text = answer_text(*await self._post(json.dumps(body).encode()), self._clean)
        try:
            return parse(text)
        except MalformedError as error:
            advice = "set response_format to json_schema, or try another model"
            # No pause: those are for servers that are busy, and this one has answered.
            raise Failure(str(error), advice, wait=0.0, said=text) from None

    async def _post(self, content: bytes) -> tuple[int, httpx2.Headers, bytes]:
        reply = bytearray()
        try:
            with anyio.fail_after(self.timeout):
                url = f"{self.endpoint}/chat/completions"
                async with self._http.stream("POST", url, content=content) as response:
                    async for piece in response.aiter_bytes():
                        reply += piece
                        if len(reply) > _LARGEST_REPLY:
                            raise Failure(f"sent over {_LARGEST_REPLY >> 20} MB", NO_API)
                    return response.status_code, response.headers, bytes(reply)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            reason = f"cannot be reached ({self._clean(_first_cause(error))})"
            advice = "see whether the server is running, and whether endpoint names its place"
            raise Failure(reason, advice, everywhere=True) from None
        except httpx2.HTTPError as error:
            reason = f"the connection broke off ({self._clean(str(error) or type(error).__name__)})"
            raise Failure(reason, LOG) from None
        except TimeoutError:
            raise Failure(
                f"no answer within {self.timeout:g} s",
                "give it longer (timeout), or ask for less: a smaller max_side, fewer references, "
                "a lower concurrency",
            ) from None

    def _clean(self, text: str, longest: int = _EXCERPT) -> str:
        """Foreign text, fit for a message: on one line, short, and without the key."""
        if self._key is not None:
            text = text.replace(self._key, "(key)")
        text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return text if len(text) <= longest else text[:longest] + "..."


def _first_cause(error: BaseException) -> str:
    """What the system said, such as ``[Errno 111] Connection refused``."""
    while True:
        if isinstance(error, BaseExceptionGroup):  # one for each address of a host
            error = error.exceptions[0]
        cause = error.__cause__ or error.__context__
        if cause is None:
            return str(error) or type(error).__name__
        error = cause
