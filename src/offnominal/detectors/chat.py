"""A chat model that is asked: a baseline, and a second opinion in words.

A multimodal model behind an OpenAI-compatible endpoint gets some good images and the image to
inspect, and answers to a JSON schema. Nothing is trained, and there are no features. The idea of
asking a general model with a few good images beside the question is in many papers; Jiang et al.,
"MMAD", 2024, arXiv 2410.09453, measure it on industrial data, and find it wanting.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.calibration import Threshold, p_value
from offnominal.chat.endpoint import AnswerError, EndpointError, check_endpoint, read_key
from offnominal.chat.prompt import ResponseFormat, encode_image, parse_extra, question
from offnominal.detectors.base import Detector, OnError, Progress, Scored, Size
from offnominal.detectors.common import CommonOptions, check_choice
from offnominal.detectors.prediction import Prediction
from offnominal.errors import BackboneError, OptionError
from offnominal.images import ImageSource, describe, read_image

if TYPE_CHECKING:
    from offnominal.chat.answer import Answer
    from offnominal.chat.client import Client

__all__ = ["ChatModel", "ChatPrediction"]

GRID = 64
"""Patches on a side of the grid that stands for an answer's boxes among the patch scores."""
MOST = 16
"""Good images that go with a question where their number is not stated."""
PATIENCE = 10
"""Images in a row without any answer after which a run ends: the endpoint is down."""

_NO_NETWORK = "none"


class _Question(NamedTuple):
    source: str
    image: np.ndarray
    request: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ChatPrediction(Prediction):
    """A prediction, and the answer that it was made of.

    The map is the score inside the answer's boxes and 0 elsewhere; without boxes nothing is said
    of where.

    Attributes
    ----------
    answer : Answer or None
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

    def as_row(self) -> dict[str, Any]:
        """Plain values for a table or JSON, with the model's words and what it answered."""
        row = super().as_row() | {"note": self.note}
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
    promise, since there are no estimates here. An answer that does not
    keep to the schema is sent back with a word on what is wrong; if the last try fails as well, the
    image is an error, reported as an unreadable one is, and has no score.

    Parameters
    ----------
    endpoint : str
        Base URL, to which ``/chat/completions`` is added.
    model : str
        As the endpoint calls it.
    key_variable : str or None
        Environment variable that holds the key. Only its name is stored.
    references : int or None
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
        Further tries for an image after a failed one, 0 or more.
    concurrency : int
        Questions in flight, 1 or more.
    extra : mapping, JSON text or None
        Further fields of the request, as ``{"top_p": 0.1}``; null leaves one of ours out.
    aggregate : str
        Makes no difference, since the model scores the image; every method has it.
    **common
        See :class:`Detector`. Those of a network are refused, and ``smoothing`` makes no
        difference.

    Raises
    ------
    OptionError
        If a value is out of range, and on use if the key is not there.
    EndpointError
        On use, if the endpoint cannot be reached, refuses the key or does not know the model, or
        if :data:`PATIENCE` images in a row got no answer at all.

    Examples
    --------
    >>> from offnominal.detectors.chat import ChatModel
    >>> detector = ChatModel("http://127.0.0.1:8080/v1", "qwen2.5-vl", references=2)
    >>> [prediction] = detector.fit(["good/0.png", "good/1.png"]).predict("next.png")
    >>> prediction.is_anomalous, prediction.note
    """

    method: ClassVar[str] = "chat"
    default_backbone: ClassVar[str] = _NO_NETWORK
    backbone_family: ClassVar[str | None] = None
    needs_references: ClassVar[bool] = False

    reference_jpegs_: Tensor
    reference_ends_: Tensor

    def __init__(
        self,
        endpoint: str = "http://127.0.0.1:8080/v1",
        model: str = "",
        key_variable: str | None = None,
        references: int | None = None,
        class_name: str | None = None,
        max_side: int = 1024,
        response_format: ResponseFormat = "json_schema",
        max_tokens: int = 1024,
        seed: int = 0,
        timeout: float = 120.0,
        retries: int = 3,
        concurrency: int = 1,
        extra: Mapping[str, Any] | str | None = None,
        aggregate: str = "max",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        _check_common(common)
        check_choice("response_format", response_format, get_args(ResponseFormat))
        for name, value, least in (
            ("references", references or 0, 0),
            ("max_side", max_side, 32),
            ("max_tokens", max_tokens, 1),
            ("retries", retries, 0),
            ("concurrency", concurrency, 1),
        ):
            if not value >= least:
                raise OptionError(f"{name} {value}: give {least} or more")
        if not timeout > 0:
            raise OptionError(f"timeout {timeout}: give the seconds that a request may take")
        if not model:
            raise OptionError("model: give the name by which the endpoint knows the model")
        self.backbone = _NO_NETWORK
        self.endpoint = check_endpoint(endpoint)
        self.model = model
        self.key_variable = key_variable
        self.references = references
        self.class_name = class_name
        self.max_side = max_side
        self.response_format = response_format
        self.max_tokens = max_tokens
        self.seed = seed
        self.timeout = timeout
        self.retries = retries
        self.concurrency = concurrency
        self.extra = parse_extra(extra)
        self.aggregate = aggregate
        # JPEG files one after the other, and where each ends.
        self.register_buffer("reference_jpegs_", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("reference_ends_", torch.empty(0, dtype=torch.int64))

    # -- learning: nothing but to keep some images --------------------------------------------

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        jpegs = []
        for index, image in islice(images, self.references):
            if self.references is None and index == MOST:
                raise OptionError(
                    f"over {MOST} good images, and each would go with every question: draw some "
                    "with --shots, or set references to show the first so many"
                )
            jpegs.append(encode_image(image, self.max_side))
            if progress:
                progress("references", index + 1)
        joined = np.frombuffer(b"".join(jpegs), np.uint8).copy()
        self.reference_jpegs_ = torch.from_numpy(joined)
        self.reference_ends_ = torch.tensor([len(jpeg) for jpeg in jpegs]).long().cumsum(0)

    def reference_files(self) -> list[bytes]:
        """The good examples, as JPEG files, in the order in which they are shown."""
        joined = self.reference_jpegs_.cpu().numpy().tobytes()
        ends = [int(end) for end in self.reference_ends_]
        return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    # -- asking -------------------------------------------------------------------------------

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as they come, in order, with ``concurrency`` questions in flight.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
        on_error : callable or None
            Called with each :class:`ImageError`, which is an :class:`AnswerError` where the image
            could be read and there is no usable answer; the image is left out. None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.

        Raises
        ------
        EndpointError, OptionError
            As the class says.
        """
        self._check_fitted()
        endpoint, key = check_endpoint(self.endpoint), read_key(self.key_variable)
        try:
            from offnominal.chat.answer import schema
            from offnominal.chat.client import Client, ask_in_order
        except ImportError as error:
            raise OptionError(
                f"method chat needs openai and pydantic ({error}): install them with "
                "`pip install 'offnominal[chat]'`"
            ) from error
        client = Client(endpoint, key, self.timeout, self.retries)
        prepare = partial(self._prepare, self.reference_files(), schema())
        ask = partial(self._ask, client)
        done = unanswered = 0
        for _, prediction, error in ask_in_order(client, images, prepare, ask, self.concurrency):
            if prediction is not None:
                done, unanswered = done + 1, 0
                if progress:
                    progress("predict", done)
                yield prediction
            elif error is not None:
                if isinstance(error, AnswerError):
                    unanswered = 0 if error.answered else unanswered + 1
                if on_error is None:
                    raise error
                on_error(error)
                if unanswered == PATIENCE:
                    raise EndpointError(
                        f"{PATIENCE} images in a row got no answer, the last one for this reason: "
                        f"{error.reason}"
                    )

    def _prepare(
        self, references: Sequence[bytes], schema: dict[str, Any], source: ImageSource
    ) -> _Question:
        image = read_image(source, self.sixteen_bit)
        jpeg = encode_image(image, self.max_side)
        forms = {
            "json_schema": {
                "type": "json_schema",
                "json_schema": {"name": "inspection", "strict": True, "schema": schema},
            },
            "json_object": {"type": "json_object"},
            "none": None,
        }
        request = {
            "model": self.model,
            "messages": [question(references, jpeg, self.class_name, schema)],
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "response_format": forms[self.response_format],
            **(self.extra or {}),
        }
        request = {name: value for name, value in request.items() if value is not None}
        return _Question(describe(source), image, request)

    async def _ask(self, client: "Client", asked: _Question) -> Prediction:
        from anyio import to_thread

        from offnominal.chat.client import NoAnswerError

        try:
            answer = await client.ask(asked.request)
        except NoAnswerError as error:
            reason = f"{self.endpoint}: {error}"
            raise AnswerError(asked.source, reason, error.said is not None) from None
        return await to_thread.run_sync(self._answered, asked.source, asked.image, answer)

    def _answered(self, source: str, image: np.ndarray, answer: "Answer") -> ChatPrediction:
        from offnominal.chat.answer import fill

        bare = ChatPrediction(
            source=source,
            score=answer.score,
            anomaly_map=fill(answer, image.shape[0], image.shape[1]),
            patch_scores=fill(answer, GRID, GRID),
            image=image,
            image_term=answer.score,
            answer=answer,
        )
        return self._decided(bare)

    # -- what thresholds are set from ---------------------------------------------------------

    def rescore(self, prediction: Prediction) -> Prediction:
        """The same answer, with this detector's thresholds."""
        assert isinstance(prediction, ChatPrediction)
        return self._decided(prediction)

    def _decided(self, prediction: ChatPrediction) -> ChatPrediction:
        threshold, pixel_threshold = self.threshold, self.pixel_threshold
        return replace(
            prediction,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel_threshold.value if pixel_threshold else None,
            p_value=p_value(prediction.score, self.good_scores_.cpu().numpy()),
        )

    def _choose_threshold(self, scores: Tensor) -> Threshold | None:
        """A promise or nothing: confidences keep to [0, 1], which an extrapolation does not."""
        found = super()._choose_threshold(scores)
        return None if found is None or found.kind == "estimate" else found

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        return torch.tensor(image_term, dtype=torch.float64)

    def _map(self, patch_scores: Tensor, size: Size, cover: Size | None) -> Tensor:
        return patch_scores  # asked for its largest value only

    def _scored(self, prediction: Prediction) -> Scored:
        size = (prediction.image.shape[0], prediction.image.shape[1])
        grid = torch.from_numpy(prediction.patch_scores)
        return Scored(grid, size, None, prediction.image_term)

    # -- what other methods have and this one has not -----------------------------------------

    def build_network(self) -> Backbone:
        """A stand-in, which says that there is no network here."""
        return _NoBackbone(self.max_side)

    def forward(self, pixels: Tensor, size: Size | None = None) -> NoReturn:
        """Not there: a chat model is asked about images."""
        raise BackboneError("a chat model is no program over pixels; call predict or stream")

    def _patch_scores(self, pixels: Tensor) -> NoReturn:
        self.forward(pixels)


class _NoBackbone(Backbone):
    """Stands where a detector is asked for its backbone."""

    name = _NO_NETWORK
    dim = 0
    stride = 1
    multiple = 1

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution

    def forward(self, pixels: Tensor) -> NoReturn:
        """Not there: the endpoint gives no features."""
        raise BackboneError("a chat model gives no features; call predict or stream")


def _check_common(common: CommonOptions) -> None:
    """Refuse the options of a network, which would seem to do something."""
    if common.get("backbone") not in (None, _NO_NETWORK):
        raise OptionError(
            f"--backbone {common['backbone']}: a chat model has no backbone; name the model with "
            "model"
        )
    for name in ("weights", "layers", "resolution", "resize", "tile"):
        if common.get(name) is not None:
            raise OptionError(
                f"--{name}: a chat model has no network here; max_side is the size that is sent"
            )
