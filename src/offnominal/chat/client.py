"""Sending questions to an OpenAI-compatible endpoint, several at a time and within limits."""

import json
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn, TypeVar

import openai
from anyio import Lock, Semaphore, fail_after, to_thread
from anyio.from_thread import start_blocking_portal

from offnominal.chat.answer import Answer, parse_answer
from offnominal.chat.blotting import blotter
from offnominal.chat.endpoint import EndpointError, is_loopback
from offnominal.chat.prompt import correction
from offnominal.errors import ImageError, OffnominalError
from offnominal.prefetch import in_order

__all__ = ["Client", "NoAnswerError", "ask_in_order"]

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")

_CONNECT = 10.0  # seconds in which a connection must stand
_EXCERPT = 200  # characters of foreign text in a message
_LARGEST = 16 * 2**20  # bytes of a reply, unpacked; an answer has a few thousand
_HEADERS = {
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host",
    "user-agent",
}  # fmt: skip
_LOG = "the server's log may say why"
_KEY = "name the environment variable that holds a valid key with key_variable"
_PLACE = "see whether endpoint is the base URL of an OpenAI-compatible API that serves this model"
_FORM = (
    "if it cannot hold an answer to a schema, set response_format to json_object or none; if the "
    "request is too large, lower max_side or examples"
)
# What every other question would get too, and what to do about it.
_EVERYWHERE = {401: _KEY, 403: _KEY, 404: _PLACE, 405: _PLACE}
_ADVICE = {**_EVERYWHERE, 408: _LOG, 429: "lower concurrency, or come back later"}


class NoAnswerError(OffnominalError):
    """One question has no usable answer.

    Parameters
    ----------
    reason, advice : str
    said : str or None
        The answer that cannot be used; None: nothing came from the model.
    again : bool
        Whether it may be worth asking once more.
    """

    def __init__(
        self, reason: str, advice: str, said: str | None = None, again: bool = False
    ) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason
        self.said = said
        self.again = again


class _Http(openai.DefaultAsyncHttpxClient):
    """The library's connection, held to one place, one key and one time.

    Redirects are not followed: images and keys go where the user said, and nowhere else. A proxy of
    the environment is for hosts outside; it would not find this machine's own.
    """

    def __init__(self, endpoint: str, key: str | None, deadline: float) -> None:
        super().__init__(follow_redirects=False, trust_env=not is_loopback(endpoint))
        self.key = key
        self.deadline = deadline

    async def send(self, request: Any, **options: Any) -> Any:
        # The library adds what it finds in OPENAI_* variables, which is no other server's business.
        for name in set(request.headers) - _HEADERS:
            del request.headers[name]
        if self.key is not None:
            request.headers["Authorization"] = f"Bearer {self.key}"
        with fail_after(self.deadline):  # the library's own time-outs are from byte to byte
            reply = await super().send(request, **options | {"stream": True})
            try:
                return await self._read(reply)
            finally:
                await reply.aclose()

    async def _read(self, reply: Any) -> Any:
        """The whole reply, unpacked; its size is the server's choice, and its limit ours."""
        content = bytearray()
        async for part in reply.aiter_bytes():
            content += part
            if len(content) > _LARGEST:
                raise ValueError(f"over {_LARGEST >> 20} MB, which no answer is")
        packed = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in reply.headers.items() if name not in packed]
        told: dict[str, Any] = {"headers": headers, "request": reply.request}
        return type(reply)(reply.status_code, content=bytes(content), **told)


class Client:
    """Questions to one endpoint.

    Parameters
    ----------
    endpoint : str
        Base URL.
    key : str or None
        Sent as bearer token, and blotted out wherever the endpoint repeats it.
    timeout : float
        Seconds for one request, from the connection to the last byte of the reply.
    retries : int
        Further tries after a failed request, and further questions after an unusable answer.
    """

    def __init__(self, endpoint: str, key: str | None, timeout: float, retries: int) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.retries = retries
        self._blot = blotter(key)
        self.openai = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=endpoint,
            timeout=openai.Timeout(None, connect=min(_CONNECT, timeout)),
            max_retries=retries,
            http_client=_Http(endpoint, key, timeout),
        )

    async def ask(self, request: Mapping[str, Any]) -> Answer:
        """The answer to one question; a malformed one is told to the model, which is asked again.

        Parameters
        ----------
        request : mapping
            Fields of the request, ``model`` and ``messages`` among them.

        Raises
        ------
        NoAnswerError
            If there is no usable answer after all tries.
        EndpointError
            If no other question would get one either.
        """
        body = dict(request)
        for left in range(self.retries, -1, -1):
            try:
                return self._read(await self._send(body))
            except NoAnswerError as error:
                if not left or not error.again:
                    raise
                if error.said is not None:
                    told = correction(error.said, error.reason)
                    body["messages"] = [request["messages"][0], *told]
        raise AssertionError  # the last try returns or raises

    async def _send(self, body: Mapping[str, Any]) -> Any:
        extra = dict(body)
        model, messages = extra.pop("model"), extra.pop("messages")
        try:
            return await self.openai.chat.completions.create(
                model=model, messages=messages, extra_body=extra
            )
        except openai.APIStatusError as error:
            self._refused(error)
        except openai.APIConnectionError as error:
            why = self._clean(str(error.__cause__ or error))
            # Which HTTP library it is that tells more by its classes is openai's business.
            if type(error.__cause__).__name__.startswith(("Connect", "Proxy")):
                raise EndpointError(
                    f"{self.endpoint}: cannot be reached ({why}); see whether the server is "
                    "running, and whether endpoint names its place"
                ) from None
            raise NoAnswerError(f"the connection broke off ({why})", _LOG) from None
        except TimeoutError:
            raise NoAnswerError(
                f"no answer within {self.timeout:g} s",
                "give it longer (timeout), or ask for less: a smaller max_side, fewer examples, "
                "a lower concurrency",
                again=True,
            ) from None
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise self._no_completion(error) from None

    def _refused(self, error: openai.APIStatusError) -> NoReturn:
        status = error.status_code
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        reason = f"refuses with status {status} ({self._clean(str(said or error.message))})"
        advice = _ADVICE.get(status) or (_LOG if status >= 500 else _FORM)
        if 300 <= status < 400:
            place = self._clean(error.response.headers.get("location", "elsewhere"))
            reason, advice = f"redirects to {place}", "if that is right, give it as endpoint"
        elif status not in _EVERYWHERE:
            raise NoAnswerError(reason, advice) from None
        raise EndpointError(f"{self.endpoint}: {reason}; {advice}") from None

    def _read(self, completion: Any) -> Answer:
        try:
            choice = completion.choices[0]
            text, refusal = choice.message.content, choice.message.refusal
            ended = choice.finish_reason
        except (AttributeError, TypeError, LookupError):
            raise self._no_completion(completion) from None
        if refusal or ended == "content_filter":
            why = self._clean(str(refusal or "its content filter"))
            advice = "try another model, or a plainer class_name"
            raise NoAnswerError(f"the model refuses to answer: {why}", advice, said="")
        said = text if isinstance(text, str) else ""
        if ended == "length":
            reason = "the answer is too long and was cut off"
            advice = "raise max_tokens, and the server's context if that is what it filled"
            raise NoAnswerError(reason, advice, said, again=True)
        if not said.strip():
            raise NoAnswerError("the answer is empty", "try another model", "", again=True)
        try:
            answer = parse_answer(said)
        except ValueError as error:
            reason = f"{self._clean(str(error))}, beginning {self._clean(said, 60)!r}"
            advice = "set response_format to json_schema, or try another model"
            raise NoAnswerError(reason, advice, said, again=True) from None
        return answer.model_copy(update={"description": self._blot(answer.description)})

    def _no_completion(self, found: object) -> NoAnswerError:
        text = str(found)
        if isinstance(found, openai.BaseModel):
            # Not pydantic's JSON, which ends at what has no encoding.
            text = json.dumps(found.model_dump(exclude_none=True, warnings=False), default=str)
        reason = f"sent no chat completion ({self._clean(text) or 'empty'})"
        return NoAnswerError(reason, f"{_PLACE}; it usually ends in /v1", again=True)

    def _clean(self, text: str, longest: int = _EXCERPT) -> str:
        """Foreign text, fit for a message: on one line, short, and without the key."""
        text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        text = self._blot(text)  # before it is cut, since half a key is too much
        return text if len(text) <= longest else text[:longest] + "..."


def ask_in_order(
    client: Client,
    images: Iterable[T],
    prepare: Callable[[T], P],
    work: Callable[[P], Awaitable[R]],
    concurrency: int,
) -> Generator[tuple[T, R | None, ImageError | None], None, None]:
    """Do `work` on what `prepare` makes of images, `concurrency` at a time, and keep their order.

    As :func:`offnominal.prefetch.prefetch`, but for work that waits for a network: when the
    consumer stops (``break``, an exception, Ctrl-C), what is under way is broken off at once, where
    threads would have to wait for their replies. The event loop has a thread of its own, so that it
    does not matter whether the consumer has a loop already, as a notebook does. `prepare` runs on
    another, on one image after the other, so that the next one is ready in time.
    """
    line, free = Lock(), Semaphore(concurrency)

    async def one(image: T) -> R:
        async with line:  # first come, first served
            prepared = await to_thread.run_sync(prepare, image)
            await free.acquire()
        try:
            return await work(prepared)
        finally:
            free.release()

    with (
        start_blocking_portal(name="offnominal-chat") as portal,
        portal.wrap_async_context_manager(client.openai),
    ):
        yield from in_order(images, partial(portal.start_task_soon, one), 2 * concurrency)
