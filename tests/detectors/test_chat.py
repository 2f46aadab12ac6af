"""The chat method against a real server on loopback that keeps to the API, or does not."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.chat_server import (
    FINE,
    GOOD,
    Behaviour,
    ChatServer,
    after,
    answers,
    drips,
    drops,
    fails,
    of_shade,
    says,
    sends,
)

import offnominal
from offnominal.chat.endpoint import AnswerError, EndpointError
from offnominal.detectors.chat import GRID, MOST, PATIENCE, ChatModel, ChatPrediction
from offnominal.errors import ImageError, NotFittedError, OptionError

Serve = Callable[..., ChatServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers; at the end none of them may have seen a request that the API forbids."""
    with ExitStack() as stack:
        started: list[ChatServer] = []

        def start(*script: Behaviour) -> ChatServer:
            started.append(stack.enter_context(ChatServer(*script)))
            return started[-1]

        yield start
        assert [problem for server in started for problem in server.problems] == []


def picture(shade: int, height: int = 40, width: int = 60) -> np.ndarray:
    """A flat image, told from others by its mean value."""
    return np.full((height, width, 3), shade, np.uint8)


def model(server: ChatServer | str, shots: int = 0, **options: Any) -> ChatModel:
    """A fitted detector that loses no time."""
    endpoint = server if isinstance(server, str) else server.endpoint
    quick = {"timeout": 10.0, "retries": 2}
    detector = ChatModel(endpoint, "test", **(quick | options))
    return detector.fit([picture(200 + index) for index in range(shots)])


def ask(detector: ChatModel, count: int = 1) -> tuple[list[Any], list[ImageError]]:
    """Predictions of some images, and what became of the others."""
    errors: list[ImageError] = []
    images = [picture(10 * index + 10) for index in range(count)]
    return list(detector.stream(images, errors.append)), errors


# -- what an answer becomes -------------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_becomes_a_prediction(serve: Serve) -> None:
    [found] = model(serve(answers())).predict(picture(90, 400, 800))
    assert isinstance(found, ChatPrediction)
    assert found.score == 0.875
    assert found.is_anomalous is True
    assert found.threshold is None
    assert found.note == "a scratch in the middle"
    wanted = np.zeros((400, 800), np.float32)
    wanted[200:300, 200:400] = 0.875
    np.testing.assert_array_equal(found.anomaly_map, wanted)
    assert found.patch_scores.shape == (GRID, GRID)
    assert (found.patch_scores > 0).mean() == 1 / 16
    [region] = found.regions()
    assert region.box == (200, 200, 200, 100)
    row = json.loads(json.dumps(found.to_dict()))
    assert (row["score"], row["is_anomalous"], row["note"]) == (0.875, True, found.note)
    assert row["answer"]["boxes"] == [[0.25, 0.5, 0.5, 0.75]]
    heated = found.overlay()
    assert heated.shape == (400, 800, 3)
    assert (heated[250, 300] != 90).any()
    assert (heated[10, 10] == 90).all()


def test_a_good_part(serve: Serve) -> None:
    [found] = model(serve(answers(FINE))).predict(picture(90))
    assert (found.score, found.is_anomalous, found.regions()) == (0.25, False, [])
    assert not found.anomaly_map.any()
    assert (found.overlay() == 90).all()


def test_without_boxes_nothing_is_said_of_where(serve: Serve) -> None:
    [found] = model(serve(answers(boxes=[]))).predict(picture(90))
    assert (found.score, found.is_anomalous) == (0.875, True)
    assert not found.anomaly_map.any()
    assert found.regions() == []


def test_an_unsure_verdict_stays_the_verdict(serve: Serve) -> None:
    """Confidence under one half contradicts the verdict: the score says so, the decision stays."""
    [found] = model(serve(answers(confidence=0.25))).predict(picture(90))
    assert (found.score, found.is_anomalous) == (0.25, True)


# -- the question -----------------------------------------------------------------------------


def test_the_request(serve: Serve) -> None:
    server = serve(answers())
    detector = model(server, shots=3, class_name="metal nut", max_side=50, seed=7)
    detector.predict(picture(90))
    [request] = server.requests
    body = request.body
    assert (body["model"], body["temperature"], body["seed"]) == ("test", 0, 7)
    assert body["max_tokens"] == 1024
    assert body["response_format"]["type"] == "json_schema"
    assert "metal nut" in request.text
    for name in GOOD:
        assert f"- {name} (" in request.text, "the model is told what a grammar only enforces"
    assert [round(float(image.mean())) for image in request.images] == [200, 201, 202, 90]
    assert {image.shape for image in request.images} == {(33, 50, 3)}
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text"] + ["text", "image_url"] * 4 + ["text"]


@pytest.mark.parametrize(
    ("mode", "sent"), [("json_object", {"type": "json_object"}), ("none", None)]
)
def test_other_forms_are_sent_where_asked_for(serve: Serve, mode: Any, sent: Any) -> None:
    server = serve(answers())
    model(server, response_format=mode).predict(picture(90))
    assert server.requests[0].body.get("response_format") == sent


def test_fields_of_ones_own(serve: Serve) -> None:
    server = serve(answers())
    extra = {"max_tokens": None, "temperature": None, "max_completion_tokens": 99, "top_p": 0.5}
    model(server, extra=json.dumps(extra)).predict(picture(90))
    model(server, extra=extra).predict(picture(90))
    for request in server.requests:
        assert not {"max_tokens", "temperature"} & set(request.body)
        assert (request.body["max_completion_tokens"], request.body["top_p"]) == (99, 0.5)


def test_the_picture_itself_is_sent(serve: Serve, tiles: Path) -> None:
    """Of a real image, what arrives differs from the file by no more than JPEG at 95 costs."""
    from offnominal import read_image

    server = serve(answers(FINE))
    file = sorted((tiles / "train" / "good").iterdir())[0]
    model(server, max_side=4000).predict(file)
    arrived, image = server.requests[0].images[-1], read_image(file)
    assert arrived.shape == image.shape
    assert np.abs(arrived.astype(int) - image).mean() < 2


def test_references_are_the_first_readable_ones(serve: Serve, tmp_path: Path) -> None:
    server = serve(answers())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    detector = ChatModel(server.endpoint, "test", examples=2)
    errors: list[ImageError] = []
    images = [broken, picture(50), picture(50), picture(60), picture(70)]
    detector.fit(images, errors.append)
    detector.predict(picture(90))
    assert [round(float(image.mean())) for image in server.requests[0].images] == [50, 60, 90]
    assert (len(errors), detector.copies, len(detector.references)) == (1, 1, 2)
    assert server.problems == []
    assert len(server.requests) == 1, "fit asks nothing"


def test_all_references_or_a_stated_number(serve: Serve) -> None:
    server = serve(answers())
    many = [picture(shade) for shade in range(100, 101 + MOST)]
    with pytest.raises(OptionError, match=rf"over {MOST} good images.*--shots.*examples"):
        ChatModel(server.endpoint, "test").fit(many)
    for detector, shown in (
        (ChatModel(server.endpoint, "test").fit(many[:MOST]), MOST),
        (ChatModel(server.endpoint, "test", examples=MOST + 1).fit(many), MOST + 1),
        (ChatModel(server.endpoint, "test", examples=5).fit(many[:2]), 2),
    ):
        detector.predict(picture(90))
        assert len(server.requests[-1].images) == shown + 1
        assert len(detector.references) == shown


def test_without_references(serve: Serve) -> None:
    server = serve(answers())
    ChatModel(server.endpoint, "test", examples=0).fit().predict(picture(90))
    ChatModel(server.endpoint, "test", examples=0).fit([picture(1)]).predict(picture(90))
    ChatModel(server.endpoint, "test").fit([]).predict(picture(90))
    assert [len(request.images) for request in server.requests] == [1, 1, 1]
    with pytest.raises(NotFittedError):
        ChatModel(server.endpoint, "test", examples=0).predict(picture(90))


# -- answers that cannot be used --------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (says("Yes, there is a scratch."), "not one JSON object.*beginning 'Yes, there is"),
        (says("Sure! " + json.dumps(GOOD)), "not one JSON object"),
        (says(json.dumps(GOOD)[:30]), "not one JSON object"),
        (answers(confidence=90), "confidence: .*less than or equal to 1"),
        (answers(boxes=[{"left": 10, "top": 10, "right": 30, "bottom": 30}]), "boxes 0 left"),
        (says(""), "the answer is empty"),
        (says(None), "the answer is empty"),
        (says(json.dumps(GOOD)[:30], ended="length"), "cut off.*raise max_tokens"),
    ],
)
def test_malformed_answers_are_failures(serve: Serve, behaviour: Behaviour, problem: str) -> None:
    server = serve(behaviour)
    found, [error] = ask(model(server))
    assert found == []
    assert isinstance(error, AnswerError)
    assert error.answered
    assert error.source == "array (40, 60, 3) uint8"
    assert error.reason.startswith(server.endpoint)
    assert re.search(problem, error.reason), error.reason
    assert len(server.requests) == 3, "the first try and two more"


def test_a_malformed_answer_is_told_to_the_model(serve: Serve) -> None:
    server = serve(says("It is fine."), answers(confidence=2), answers(FINE))
    [found] = model(server).predict(picture(90))
    assert found.score == 0.25
    first, second, third = (request.body["messages"] for request in server.requests)
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[0] == first[0]
    assert second[1]["content"] == "It is fine."
    assert "not one JSON object" in second[2]["content"]
    assert "confidence: " in third[2]["content"]
    assert len(third) == 3, "the last one only"


def test_no_retries(serve: Serve) -> None:
    server = serve(says("?"), answers())
    found, errors = ask(model(server, retries=0))
    assert (found, len(errors), len(server.requests)) == ([], 1, 1)


@pytest.mark.parametrize(
    "behaviour",
    [says(None, refusal="I cannot look at this."), says("", ended="content_filter")],
)
def test_a_refusal_is_not_asked_again(serve: Serve, behaviour: Behaviour) -> None:
    server = serve(behaviour)
    _, [error] = ask(model(server))
    assert "refuses to answer" in str(error)
    assert isinstance(error, AnswerError)
    assert error.answered
    assert len(server.requests) == 1


# -- endpoints that fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (fails(500, "out of memory"), r"status 500 \(out of memory\).*server's log"),
        (fails(429, "slow down"), r"status 429 \(slow down\).*lower concurrency"),
        (sends(502, b"<html>bad gateway</html>"), r"status 502 \(<html>bad gateway"),
        (drops, "the connection broke off"),
        (sends(200, b"<html>Welcome to the router</html>"), r"no chat completion \(<html>We.*/v1"),
        (sends(200, b""), r"no chat completion \(empty\)"),
        (sends(200, b"\xff\xfe\x00"), "no chat completion"),
        (sends(200, b"{", Content_Type="application/json"), "no chat completion"),
        (sends(200, b"[" * 100_000, Content_Type="application/json"), "no chat completion"),
        (sends(200, {"choices": []}), "no chat completion"),
        (sends(200, {"choices": {}}), "no chat completion"),
        (sends(200, {"choices": "\ud800"}), "no chat completion"),
        (sends(200, {"choices": [{"message": "hello"}]}), "no chat completion"),
        (sends(200, {"error": {"message": "model is loading"}}), "model is loading"),
        (sends(200, [1]), "no chat completion"),
    ],
)  # fmt: skip
def test_failures_of_the_endpoint_are_tried_again(
    serve: Serve, behaviour: Behaviour, problem: str
) -> None:
    server = serve(behaviour, answers())
    [found] = model(server, retries=1).predict(picture(90))
    assert found.score == 0.875, "the second try"
    server = serve(behaviour)
    _, [error] = ask(model(server, retries=1))
    assert isinstance(error, AnswerError)
    assert not error.answered
    assert re.search(problem, error.reason), error.reason
    assert server.endpoint in error.reason
    assert len(server.requests) == 2
    assert len(str(error)) < 600


@pytest.mark.parametrize("behaviour", [after(30, answers()), drips])
def test_a_request_takes_no_longer_than_it_may(serve: Serve, behaviour: Behaviour) -> None:
    server = serve(behaviour)
    start = time.monotonic()
    _, [error] = ask(model(server, timeout=0.2, retries=1))
    assert 0.4 < time.monotonic() - start < 10
    assert "no answer within 0.2 s" in str(error)
    assert "timeout" in str(error)
    assert len(server.requests) == 2


def test_retry_after_is_kept_to(serve: Serve) -> None:
    server = serve(fails(429, Retry_After_Ms="400"), answers())
    start = time.monotonic()
    [found] = model(server).predict(picture(90))
    assert found.score == 0.875
    assert 0.4 <= time.monotonic() - start < 10


def test_nobody_waits_an_hour(serve: Serve) -> None:
    server = serve(fails(429, "come tomorrow", Retry_After_Ms="", Retry_After="3600"))
    _, [error] = ask(model(server))
    assert "come tomorrow" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_not_sent_again(serve: Serve, status: int) -> None:
    server = serve(fails(status, "response_format is not supported"), answers())
    found, [error] = ask(model(server), count=2)
    assert len(found) == 1, "the other image goes on"
    assert f"status {status} (response_format is not supported)" in str(error)
    assert "set response_format to json_object or none" in str(error)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (fails(401, "invalid key"), "status 401 .*key_variable"),
        (fails(403), "status 403 .*key_variable"),
        (fails(404, "the model `test` does not exist"), "does not exist.*base URL.*this model"),
        (fails(405), "status 405"),
        (sends(307, b"", Location="http://127.0.0.1:9/v1"), "redirects to http://127.0.0.1:9/v1"),
    ],
)
def test_what_every_image_would_meet_ends_the_run(
    serve: Serve, behaviour: Behaviour, problem: str
) -> None:
    server = serve(behaviour)
    with pytest.raises(EndpointError, match=problem) as error:
        ask(model(server), count=5)
    assert str(error.value).startswith(server.endpoint)
    assert len(server.requests) <= 2, "those in flight"


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"cannot be reached \(.*onnect") as error:
            ask(model(endpoint, retries=1), count=5)
    assert str(error.value).startswith(endpoint)
    assert "see whether the server is running" in str(error.value)


def test_an_endpoint_that_went_down_ends_the_run(serve: Serve) -> None:
    server = serve(answers(), fails(500))
    errors: list[ImageError] = []
    found = model(server, retries=0).stream(map(picture, range(100)), errors.append)
    assert next(found).score == 0.875
    with pytest.raises(EndpointError, match=rf"{PATIENCE} images in a row.*status 500"):
        next(found)
    assert len(errors) == PATIENCE


def test_a_poor_model_does_not(serve: Serve) -> None:
    found, errors = ask(model(serve(says("?")), retries=0), count=2 * PATIENCE)
    assert (found, len(errors)) == ([], 2 * PATIENCE)


# -- several images ---------------------------------------------------------------------------


def test_failures_are_counted_and_the_others_go_on(serve: Serve, tmp_path: Path) -> None:
    """Shade 20 is answered badly, 40 never; a broken file never gets as far."""

    def by_shade(shade: int) -> Behaviour:
        return {20: says("?"), 40: fails(500)}.get(shade, answers(description=str(shade)))

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    images = [picture(10), picture(20), broken, picture(30), picture(40), picture(50)]
    errors: list[ImageError] = []
    stages: list[tuple[str, int]] = []
    detector = model(serve(of_shade(by_shade)), concurrency=3)
    found = list(detector.stream(images, errors.append, lambda *stage: stages.append(stage)))
    assert [prediction.note for prediction in found] == ["10", "30", "50"]
    assert [isinstance(error, AnswerError) for error in errors] == [True, False, True]
    assert [getattr(error, "answered", None) for error in errors] == [True, None, False]
    for error in errors:  # which would keep their images in memory
        assert error.__traceback__ is error.__context__ is error.__cause__ is None
    assert stages == [("predict", 1), ("predict", 2), ("predict", 3)]
    with pytest.raises(AnswerError):
        detector.predict(images)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_order_whatever_the_speed(serve: Serve, concurrency: int) -> None:
    """The earlier an image, the longer the server takes for it."""

    def by_shade(shade: int) -> Behaviour:
        return after((120 - shade) / 800, answers(description=str(shade)))

    server = serve(of_shade(by_shade))
    found, errors = ask(model(server, concurrency=concurrency), count=10)
    assert [prediction.note for prediction in found] == [str(10 * i) for i in range(1, 11)]
    assert errors == []
    assert server.most_at_once == concurrency


def test_waiting_for_ones_turn_is_not_on_the_clock(serve: Serve) -> None:
    server = serve(after(0.8, answers()))
    found, errors = ask(model(server, concurrency=1, timeout=1.5, retries=0), count=2)
    assert (len(found), errors) == (2, [])


def test_one_at_a_time_they_are_asked_in_order(serve: Serve) -> None:
    """A large image takes longer to prepare, and still goes first."""
    server = serve(answers())
    images = [picture(10, 2000, 3000), *(picture(20 + index) for index in range(5))]
    model(server).predict(images)
    assert [request.shade for request in server.requests] == [10, 20, 21, 22, 23, 24]


def test_images_are_taken_as_they_are_needed(serve: Serve) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken % 250)

    found = model(serve(answers()), concurrency=2).stream(endless())
    for _ in range(20):
        next(found)
    assert taken <= 20 + 4


def test_a_folder_stands_for_its_images(serve: Serve, tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(picture(10 * number)).save(tmp_path / f"{number}.png")
    assert len(model(serve(answers())).predict(str(tmp_path))) == 3


def test_an_error_of_the_source_comes_after_what_was_before(serve: Serve) -> None:
    def two() -> Iterator[np.ndarray]:
        yield picture(10)
        yield picture(20)
        raise RuntimeError("the camera fell off")

    found = model(serve(after(0.05, answers()))).stream(two())
    assert next(found).score == next(found).score == 0.875
    with pytest.raises(RuntimeError, match="camera"):
        next(found)


def test_a_consumer_that_stops_does_not_wait(serve: Serve) -> None:
    # Four are asked about at once, and any of them may come first.
    server = serve(*[answers()] * 4, after(30, answers()))
    found = model(server, concurrency=4).stream(map(picture, range(50)))
    next(found)
    start = time.monotonic()
    found.close()
    assert time.monotonic() - start < 10


def test_inside_a_running_event_loop(serve: Serve) -> None:
    """As in a notebook."""
    detector = model(serve(answers()))

    async def cell() -> float:
        return detector.predict(picture(90))[0].score

    assert asyncio.run(cell()) == 0.875


@pytest.mark.slow
def test_ctrl_c(serve: Serve) -> None:
    server = serve(after(30, answers()))
    code = (
        "import sys; import numpy as np\n"
        "from offnominal.detectors.chat import ChatModel\n"
        "detector = ChatModel(sys.argv[1], 'test', examples=0, concurrency=2).fit()\n"
        "detector.predict([np.full((40, 40, 3), i, np.uint8) for i in range(9)])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, server.endpoint],
        stderr=subprocess.PIPE,
        text=True,
        # A run in the background passes on that Ctrl-C is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 60
        while len(server.requests) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, complaint = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode != 0
    assert complaint.rstrip().endswith("KeyboardInterrupt"), complaint


# -- keys, places, files ----------------------------------------------------------------------


def test_the_key_is_sent_and_nowhere_else(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-hunter2-0123456789"
    monkeypatch.setenv("PART_KEY", key)

    def repeat(status: int) -> Behaviour:
        def reply(handler: Any, request: Any) -> None:
            said = f"wrong key: {request.headers['Authorization']}"
            handler.reply(status, {"error": {"message": said}})

        return reply

    server = serve(answers(), says(key), repeat(400), repeat(401))
    detector = model(server, shots=1, key_variable="PART_KEY", retries=0)
    detector.predict(picture(90))
    assert server.requests[0].headers["Authorization"] == f"Bearer {key}"
    assert key not in json.dumps(server.requests[0].body)
    detector.save(tmp_path / "part.offn")
    content = (tmp_path / "part.offn").read_bytes()
    assert b"PART_KEY" in content
    assert b"hunter2" not in content
    for text in (repr(detector), str(detector.options()), str(vars(detector))):
        assert "hunter2" not in text
    _, errors = ask(detector, count=2)
    with pytest.raises(EndpointError) as refused:
        ask(detector)
    for error in (*errors, refused.value):
        assert "(key)" in str(error)
        assert "hunter2" not in repr(error)
        assert error.__cause__ is None


def test_the_key_is_read_on_use(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PART_KEY", raising=False)
    server = serve(answers())
    detector = model(server, key_variable="PART_KEY")
    with pytest.raises(OptionError, match=r"key_variable PART_KEY.*not set"):
        detector.predict(picture(90))
    monkeypatch.setenv("PART_KEY", "abc")
    detector.predict(picture(90))
    assert server.requests[0].headers["Authorization"] == "Bearer abc"


def test_nothing_of_another_service_is_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client library would take from the environment for OpenAI's own service."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: hunter2\nX-Other: hunter2")
    server = serve(answers())
    model(server).predict(picture(90))
    headers = server.requests[0].headers
    assert "Authorization" not in headers
    assert "hunter2" not in str(headers)
    monkeypatch.setenv("PART_KEY", "abc")
    model(server, key_variable="PART_KEY").predict(picture(90))
    assert server.requests[1].headers["Authorization"] == "Bearer abc"


def test_a_proxy_is_not_asked_for_this_machine(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(answers())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.endpoint.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = serve(answers())
    model(server).predict(picture(90))
    assert (len(server.requests), len(proxy.requests)) == (1, 0)


def test_saved_and_loaded(serve: Serve, tmp_path: Path) -> None:
    server = serve(answers())
    extra = {"top_p": 0.5}
    fitted = model(server, shots=2, class_name="tile", max_side=64, extra=extra)
    fitted.save(tmp_path / "part.offn")
    loaded = offnominal.load(tmp_path / "part.offn", device="cpu", endpoint=server.endpoint)
    assert isinstance(loaded, ChatModel)
    assert loaded.options() == fitted.options()
    assert loaded.references == fitted.references
    [a], [b] = fitted.predict(picture(90)), loaded.predict(picture(90))
    assert server.requests[0].body == server.requests[1].body, "the references to the byte"
    assert a.to_dict() == b.to_dict()
    elsewhere = serve(answers(FINE))
    loaded = offnominal.load(tmp_path / "part.offn", endpoint=elsewhere.endpoint)
    assert loaded.predict(picture(90))[0].score == 0.25


def test_saved_without_references(serve: Serve, tmp_path: Path) -> None:
    server = serve(answers())
    model(server).save(tmp_path / "none.offn")
    offnominal.load(tmp_path / "none.offn", endpoint=server.endpoint).predict(picture(90))
    assert len(server.requests[0].images) == 1


def test_calibrated_by_its_answers(serve: Serve, tmp_path: Path) -> None:
    """Of nine good parts it calls three scratched: what it says of those is no reason to reject."""

    def by_shade(shade: int) -> Behaviour:
        sure = {20: 0.6, 40: 0.625, 60: 0.75}
        return answers(confidence=sure[shade]) if shade in sure else answers(FINE)

    server = serve(of_shade(by_shade))
    detector = model(server, false_reject=0.1)
    assert detector.calibrate([picture(10 * i) for i in range(1, 10)]) == 0
    assert detector.threshold is not None
    assert (detector.threshold.value, detector.threshold.kind) == (0.75, "conformal")
    server.script = [answers(confidence=0.75), answers(confidence=0.875)]
    mild, grave = detector.predict([picture(110), picture(120)])
    assert (mild.is_anomalous, grave.is_anomalous) == (False, True)
    assert (mild.p_value, grave.p_value) == (0.2, 0.1)
    assert len(grave.regions()) == 1
    assert detector.rescored(false_reject=0.05).threshold is None, "no estimates"
    looser = detector.rescored(false_reject=0.3)
    assert looser.threshold is not None
    assert looser.threshold.value == 0.6
    again = looser.rescore(mild)
    assert (again.score, again.is_anomalous) == (0.75, True)
    np.testing.assert_array_equal(again.anomaly_map, mild.anomaly_map)
    detector.save(tmp_path / "part.offn")
    loaded = offnominal.load(tmp_path / "part.offn")
    assert str(loaded.threshold) == str(detector.threshold)


def test_what_is_said_where_it_has_no_threshold(serve: Serve) -> None:
    from offnominal.cli.info import describe_threshold

    detector = model(serve(answers(FINE)), false_reject=0.05)
    detector.calibrate([picture(10 * i) for i in range(1, 10)])
    assert describe_threshold(detector) == (
        "none: 9 good images can neither promise nor estimate 0.05 of good parts; ask for "
        "--false-reject auto, or give more"
    )


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "somewhere"}, "endpoint 'somewhere'"),
        ({"model": ""}, "model: give the name"),
        ({"examples": -1}, "examples -1"),
        ({"max_side": 8}, "max-side 8"),
        ({"retries": -1}, "retries -1"),
        ({"timeout": 0}, "timeout 0"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"max_tokens": 0}, "max-tokens 0"),
        ({"response_format": "yaml"}, "response_format 'yaml'"),
        ({"extra": "{"}, "extra: is no JSON"),
        ({"extra": "[1]"}, "extra: give a JSON object"),
        ({"extra": {"model": "other"}}, "extra: model cannot be set here"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ChatModel(**({"model": "test"} | options))


def test_options_of_a_network_are_none_of_its_own() -> None:
    taken = set(ChatModel.option_defaults())
    assert not taken & {"backbone", "weights", "layers", "resolution", "tile", "device"}
    with pytest.raises(OptionError, match="has no option"):
        ChatModel(model="test", backbone="dinov2_vits14")


@pytest.mark.slow
def test_the_client_library_is_an_extra(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = model(serve(answers()), shots=1)
    for name in ("offnominal.chat.client", "offnominal.chat.answer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(OptionError, match=r"needs openai .*pip install openai anyio"):
        detector.predict(picture(90))
    code = "import sys, offnominal.detectors.chat; print({'openai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"]
