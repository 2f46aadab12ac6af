"""A chat model that is asked: a baseline, and a second opinion in words.

A multimodal model behind an OpenAI-compatible endpoint gets some good images and the image to
inspect, and answers to a JSON schema. Nothing is trained, and there are no features. The idea of
asking a general model with a few good images beside the question is in many papers; Jiang et al.,
"MMAD", 2024, arXiv 2410.09453, measure it on industrial data, and find it wanting.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import numpy as np

from offnominal.chat import endpoint as places
from offnominal.chat.endpoint import AnswerError, EndpointError
from offnominal.chat.prompt import ResponseFormat, encode_image, parse_extra, question
from offnominal.checks import check_choice, check_range
from offnominal.detectors.base import Detector
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import (
    LeaveOneOut,
    OnError,
    Progress,
    ShowProgress,
)
from offnominal.errors import OptionError
from offnominal.images import Channels, ImageSource, Picture, describe
from offnominal.prediction import Prediction
from offnominal.progress import shown
from offnominal.scoring import Scores
from offnominal.sources import ImageSources, several

if TYPE_CHECKING:
    from offnominal.chat.answer import Answer

__all__ = ["ChatModel", "ChatPrediction"]

GRID = 64
"""Patches on a side of the grid that stands for an answer's boxes among the patch scores."""
MOST = 16
"""Good images that go with a question where their number is not stated."""
PATIENCE = 10
"""Images in a row without any answer after which a run ends: the endpoint is down."""


@dataclass(frozen=True, eq=False)
class ChatPrediction(Prediction):
    """A prediction, and the answer that it was made of.

    The map is the score inside the answer's boxes and 0 elsewhere; without boxes nothing is said
    of where.
    """

    answer: "Answer | None" = None

    @property
    def note(self) -> str:
        """What the model said, in words."""
        return self.answer.description if self.answer else ""

    @property
    def is_anomalous(self) -> bool | None:
        """Whether to reject: by the threshold, and in its absence as the model has judged."""
        if self.threshold is None and self.answer is not None:
            return self.answer.anomalous
        return super().is_anomalous

    @property
    def region_threshold(self) -> float | None:
        """Where regions begin; without a threshold a rejected image shows all of its boxes."""
        if self.pixel_threshold is None:
            return 0.0 if self.is_anomalous else None
        return super().region_threshold

    @property
    def colour_range(self) -> tuple[float, float]:
        """Map values that are drawn as none and as full heat: a score is in [0, 1]."""
        return 0.0, 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a table or JSON, with the model's words and what it answered."""
        row = super().to_dict() | {"note": self.note}
        if self.answer is not None:
            row["answer"] = {
                "anomalous": self.answer.anomalous,
                "confidence": self.answer.confidence,
                "boxes": [list(box.model_dump().values()) for box in self.answer.boxes],
            }
        return row


class ChatModel(Detector):
    """A multimodal chat model behind an OpenAI-compatible endpoint.

    Images leave this machine for the endpoint, unless that is on this machine.

    The image score is the model's own confidence that something is wrong: ``confidence`` if it
    answers anomalous, ``1 - confidence`` otherwise. Its decision is its own answer, until
    ``calibrate`` has set a threshold from its answers about good images: enough of them for a
    promise, since there are no estimates here. An answer that does not keep to the schema is sent
    back with a word on what is wrong; if the last try fails as well, the image is an error,
    reported as an unreadable one is, and has no score.

    Parameters
    ----------
    endpoint : str
        Base URL, to which ``/chat/completions`` is added.
    model : str
        As the endpoint calls it.
    key_variable : str or None
        Environment variable that holds the key. Only its name is stored, and the key is sent over
        https or to this machine only.
    examples : int or None
        How many good images go with each question: the first so many that are fitted, or all of
        them where there are fewer; 0: none. None: all of them, which may be :data:`MOST` at most,
        since every one is sent with every question.
    class_name : str or None
        What the part is called in the question, such as ``metal nut``.
    max_side : int
        Images are sent as JPEG with a longer side of at most this many pixels, 32 or more.
    response_format : {"json_schema", "json_object", "none"}
        What the endpoint is told of the form; the answer is checked in any case.
    max_tokens : int
        Length of an answer, at most.
    seed : int
        Sent with a temperature of 0.
    timeout : float
        Seconds for one request.
    retries : int
        Further tries of a failed request, and further questions after an unusable answer.
    concurrency : int
        Questions in flight, 1 or more.
    extra : mapping, JSON text or None
        Further fields of the request, as ``{"top_p": 0.1}``; null leaves one of ours out.
    **options
        See :class:`~offnominal.detectors.base.Detector`; ``smoothing`` makes no difference.

    Raises
    ------
    OptionError
        If a value is out of range, and on use if the key is not there, or if nobody but a model
        file named ``endpoint`` or ``key_variable``: give them to :func:`offnominal.load`.
    EndpointError
        On use, if the endpoint cannot be reached, refuses the key or does not know the model, or
        if :data:`PATIENCE` images in a row got no answer at all.

    Examples
    --------
    >>> from offnominal import ChatModel
    >>> detector = ChatModel("http://127.0.0.1:8080/v1", "qwen2.5-vl", examples=2)
    >>> [prediction] = detector.fit(["good/0.png", "good/1.png"]).predict("next.png")
    >>> prediction.is_anomalous, prediction.note
    """

    method: ClassVar[str] = "chat"
    needs_references: ClassVar[bool] = False
    own_score: ClassVar[str | None] = "answer"
    # Answers are verdicts: nothing is extrapolated from them, and without a threshold they decide.
    extrapolates: ClassVar[bool] = False
    judges_alone: ClassVar[bool] = True
    confirmed_options: ClassVar[tuple[str, ...]] = ("endpoint", "key_variable")

    def __init__(
        self,
        endpoint: str = "http://127.0.0.1:8080/v1",
        model: str = "",
        key_variable: str | None = None,
        examples: int | None = None,
        class_name: str | None = None,
        max_side: int = 1024,
        response_format: ResponseFormat = "json_schema",
        max_tokens: int = 1024,
        seed: int = 0,
        timeout: float = 120.0,
        retries: int = 3,
        concurrency: int = 1,
        extra: Mapping[str, Any] | str | None = None,
        aggregate: str = "answer",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_choice("response_format", response_format, ResponseFormat)
        check_range("examples", examples or 0, whole=True, least=0)
        # The most that JPEG can hold.
        check_range("max_side", max_side, whole=True, least=32, most=65_500)
        check_range("max_tokens", max_tokens, whole=True, least=1, most=10**7)
        check_range("timeout", timeout, above=0, most=86_400)
        check_range("retries", retries, whole=True, least=0, most=100)
        check_range("concurrency", concurrency, whole=True, least=1, most=1000)
        if not model or not isinstance(model, str):
            raise OptionError("model: give the name by which the endpoint knows the model")
        self.endpoint = places.check_endpoint(endpoint)
        self.model = model
        self.key_variable = places.check_key_variable(key_variable, self.endpoint)
        self.examples = examples
        self.class_name = class_name
        self.max_side = max_side
        self.response_format = response_format
        self.max_tokens = max_tokens
        self.seed = seed
        self.timeout = timeout
        self.retries = retries
        self.concurrency = concurrency
        self.extra = parse_extra(extra)
        self.begin()

    # -- learning: nothing but to keep some images --------------------------------------------

    def begin(self) -> None:
        """No image is kept yet."""
        self.jpegs_ = np.empty(0, dtype=np.uint8)  # one after the other
        self.ends_: list[int] = []  # and where each ends
        self._jpegs: list[bytes] = []

    def learn(self, number: int, image: np.ndarray) -> None:
        """Keep a good image, if it will be shown."""
        if self.examples is None and number == MOST:
            raise OptionError(
                f"over {MOST} good images, and each would go with every question: draw some "
                "with --shots, or set examples to show the first so many"
            )
        if self.examples is None or number < self.examples:
            self._jpegs.append(encode_image(image, self.max_side))

    def finish(self, progress: Progress | None) -> None:
        """Those that are not shown are no references."""
        del self.references[len(self._jpegs) :]
        joined = np.frombuffer(b"".join(self._jpegs), np.uint8).copy()
        self.jpegs_ = joined
        self.ends_ = np.cumsum([len(jpeg) for jpeg in self._jpegs], dtype=int).tolist()

    def check_learned(self) -> None:
        """The files of the examples lie one behind the other."""
        super().check_learned()
        ends = [0, *self.ends_]
        must(ends == sorted(set(ends)) and ends[-1] == len(self.jpegs_), "ends_ do not part jpegs_")
        must(len(self.ends_) == len(self.references), "examples are not one for each reference")

    def release(self) -> None:
        """Let go of what is joined."""
        self._jpegs = []

    def example_files(self) -> list[bytes]:
        """The good examples, as JPEG files, in the order in which they are shown."""
        joined = self.jpegs_.tobytes()
        return [joined[a:b] for a, b in zip([0, *self.ends_], self.ends_, strict=False)]

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some; it may ask whom this one may."""
        other = super().twin(changes)
        other.unconfirmed = self.unconfirmed
        return other

    # -- asking -------------------------------------------------------------------------------

    def stream(
        self,
        images: ImageSources,
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        channels: Channels = "rgb",
    ) -> Iterator[Prediction]:
        """Predictions as they come, in order, with ``concurrency`` questions in flight.

        Parameters
        ----------
        images, progress, channels
            See :meth:`~offnominal.detectors.base.Detector.fit`.
        on_error : callable or None
            Called with each :class:`ImageError`, which is an :class:`AnswerError` where the image
            could be read and there is no usable answer; the image is left out. None: it is raised.

        Raises
        ------
        EndpointError, OptionError
            As the class says.
        """
        self.check_fitted()
        endpoint, key = places.confirmed(self.endpoint, self.key_variable, self.unconfirmed)
        try:
            from offnominal.chat.answer import schema
            from offnominal.chat.client import Client, NoAnswerError, ask_in_order
        except ImportError as error:
            raise OptionError(
                f"method chat needs openai ({error}): install them with `pip install openai anyio`"
            ) from error
        client = Client(endpoint, key, self.timeout, self.retries)
        examples, form = self.example_files(), schema()

        def prepare(source: ImageSource) -> tuple[str, np.ndarray, dict[str, Any]]:
            image = self.image_of(source)
            request = self._request(examples, encode_image(image, self.max_side), form)
            return describe(source), image, request

        async def ask(
            prepared: tuple[str, np.ndarray, dict[str, Any]],
        ) -> tuple[str, np.ndarray, "Answer"]:
            source, image, request = prepared
            try:
                return source, image, await client.ask(request)
            except NoAnswerError as error:
                reason = f"{endpoint}: {error}"
                raise AnswerError(source, reason, error.said is not None) from None

        done = silent = 0
        sources = several(images, channels)
        with shown(progress, sources) as told:
            for _, found, failure in ask_in_order(client, sources, prepare, ask, self.concurrency):
                if found is not None:
                    done, silent = done + 1, 0
                    if told:
                        told("predict", done)
                    yield self._answered(*found)
                elif failure is not None:
                    if isinstance(failure, AnswerError):
                        silent = 0 if failure.answered else silent + 1
                    if on_error is None:
                        raise failure
                    on_error(failure)
                    if silent == PATIENCE:
                        raise EndpointError(
                            f"{PATIENCE} images in a row got no answer, the last one for this "
                            f"reason: {failure.reason}"
                        )

    def _request(
        self, shown: Sequence[bytes], image: bytes, form: dict[str, Any]
    ) -> dict[str, Any]:
        strict = {"name": "inspection", "strict": True, "schema": form}
        formats = {
            "json_schema": {"type": "json_schema", "json_schema": strict},
            "json_object": {"type": "json_object"},
        }
        request = {
            "model": self.model,
            "messages": [question(shown, image, self.class_name, form)],
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "response_format": formats.get(self.response_format),
            **(self.extra or {}),
        }
        return {name: value for name, value in request.items() if value is not None}

    def _answered(self, source: str, image: np.ndarray, answer: "Answer") -> ChatPrediction:
        from offnominal.chat.answer import fill

        scores = Scores(fill(answer, GRID, GRID), answer.score)
        plain = vars(self.prediction(source, Picture(image, 8, 255), scores))
        sharp = fill(answer, image.shape[0], image.shape[1])
        return ChatPrediction(**plain | {"anomaly_map": sharp}, answer=answer)

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the model says of one image, uint8 (H, W, 3), that is asked about alone."""
        return next(iter(self.stream([image]))).scores

    def exportable(self) -> str | None:
        """Why not."""
        return "a chat model answers over the network, in words; there is no program to export"

    # -- scores and thresholds ----------------------------------------------------------------

    def map(self, scores: Scores, size: tuple[int, int]) -> np.ndarray:
        """The grid, stretched and not smoothed: boxes have edges."""
        rows, columns = (np.arange(side) * GRID // side for side in size)
        return scores.patches[rows[:, None], columns]

    def rescore(self, prediction: Prediction) -> Prediction:
        """The same answer, with this detector's thresholds."""
        assert isinstance(prediction, ChatPrediction)
        assert prediction.answer is not None
        return self._answered(prediction.source, prediction.image, prediction.answer)

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Nothing was learned of a reference that could be left out."""
        return "none"

    def score_reference(self, number: int, kept: Any) -> NoReturn:
        """Not there, since nothing is left out."""
        raise NotImplementedError
