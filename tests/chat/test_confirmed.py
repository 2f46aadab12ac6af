"""Where images and keys go is a person's word, on this machine, never a model file's alone."""

import base64
import json
import shlex
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.chat_server import GOOD, ChatServer, answers, fails, says, sends
from typer.testing import CliRunner

import offnominal
from offnominal import modelfile
from offnominal.chat.blotting import blotter
from offnominal.chat.endpoint import check_endpoint, check_key_variable
from offnominal.cli import app
from offnominal.detectors.chat import ChatModel
from offnominal.errors import BackboneError, ImageError, ModelFileError, OptionError

KEY = "sk-Hunter2/0123+456789<&>"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(answers()) as started:
        yield started


@pytest.fixture
def part(tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file from elsewhere, that names an endpoint and one of our variables."""
    monkeypatch.setenv("PART_KEY", KEY)
    path = tmp_path / "part.offn"
    ChatModel(server.endpoint, "test", key_variable="PART_KEY", examples=0).fit().save(path)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "image.png")
    return path


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)
    if isinstance(done.exception, offnominal.errors.OffnominalError):
        return 2, str(done.exception)
    return done.exit_code, done.output


def test_a_file_alone_sends_nothing(part: Path, server: ChatServer, tmp_path: Path) -> None:
    image, output = tmp_path / "image.png", tmp_path / "out"
    loaded = offnominal.load(part)
    for judge in (
        lambda: loaded.predict(str(image)),
        lambda: loaded.calibrate([image]),
        lambda: loaded.rescored(false_reject=0.5).predict(str(image)),
        lambda: offnominal.load(part, endpoint=server.endpoint).predict(str(image)),
        lambda: offnominal.load(part, key_variable="PART_KEY").predict(str(image)),
    ):
        with pytest.raises(OptionError, match="the model file names where pictures go"):
            judge()
    before = part.read_bytes()
    for command in (
        ("predict", part, image, "-o", output),
        ("calibrate", part, image),
        ("predict", part, image, "-o", output, "--endpoint", server.endpoint),
    ):
        code, told = run(*command)
        assert code == 2, told
        assert f"--endpoint {server.endpoint} --key-variable PART_KEY" in told
    assert not output.exists(), "refused before there is a folder"
    assert part.read_bytes() == before
    assert run("info", part)[0] == 0, "it can be looked at"
    assert server.requests == server.problems == []


def test_what_is_named_here_is_asked(part: Path, server: ChatServer, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    named = ("--endpoint", server.endpoint + "/")
    assert run("predict", part, image, *named, "--key-variable", "PART_KEY")[0] == 0
    assert server.requests[-1].headers["Authorization"] == f"Bearer {KEY}"
    assert run("predict", part, image, *named, "--key-variable", "")[0] == 0
    assert "Authorization" not in server.requests[-1].headers
    loaded = offnominal.load(part, endpoint=server.endpoint, key_variable="PART_KEY")
    loaded.rescored(false_reject=0.5).predict(str(image))
    assert len(server.requests) == 3
    [row] = [json.loads(line) for line in run("predict", part, image, "-o", "-", *named,
             "--key-variable", "PART_KEY")[1].splitlines() if line.startswith("{")]  # fmt: skip
    assert row["score"] == 0.875


def test_what_is_to_be_typed_is_safe_to_type(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "https://evil.example/$(touch${IFS}x);'v1"
    with pytest.raises(OptionError):
        ChatModel(place, "test")
    place = "https://evil.example/$(touch);'v1"
    path = tmp_path / "part.offn"
    ChatModel(place, "test", examples=0).fit().save(path)
    with pytest.raises(OptionError) as error:
        offnominal.load(path).predict(np.zeros((40, 40, 3), np.uint8))
    typed = str(error.value).partition("say so with ")[2].partition(" (in Python")[0]
    assert shlex.split(typed) == ["--endpoint", place]


def test_a_method_without_an_endpoint_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "part.offn"
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    offnominal.AnomalyDINO(backbone="builtin").fit([image]).save(path)
    with pytest.raises(OptionError, match=r"--endpoint: .* of the method anomalydino"):
        offnominal.load(path, endpoint="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("endpoint", "fine"),
    [
        ("https://api.example.com/v1", True),
        ("HTTPS://api.example.com/v1", True),
        ("http://127.0.0.1:8080/v1", True),
        ("http://[::1]:8080/v1", True),
        ("http://localhost/v1", True),
        ("http://api.example.com/v1", False),
        ("http://127.0.0.1.evil.example/v1", False),
        ("http://localhost.evil.example/v1", False),
        ("http://10.0.0.7/v1", False),
    ],
)
def test_a_key_is_not_sent_where_it_can_be_read(endpoint: str, fine: bool) -> None:
    assert check_key_variable(None, endpoint) is None
    if fine:
        assert ChatModel(endpoint, "test", key_variable="PART_KEY").key_variable == "PART_KEY"
        return
    with pytest.raises(OptionError, match="PART_KEY could be read on its way"):
        ChatModel(endpoint, "test", key_variable="PART_KEY")


@pytest.mark.parametrize("variable", ["sk-hunter2", "A B", "A=B", "\x1b[31m", "A\nB", "Ａ"])
def test_what_is_no_variable(variable: str) -> None:
    with pytest.raises(OptionError, match="is no name of an environment variable"):
        ChatModel("http://127.0.0.1/v1", "test", key_variable=variable)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://\u0430pi.openai.com/v1",  # a Cyrillic a
        "https://host/v1\u202e",
        "https://host\\api.openai.com/v1",
        "https://host/v1?",
        "https://host/v1#",
        "https://host/v 1",
        "https://host/`id`",
        5,
    ],
)
def test_hosts_that_look_like_others(endpoint: Any) -> None:
    with pytest.raises(OptionError, match="is no URL"):
        check_endpoint(endpoint)


def test_what_else_a_file_names_reaches_no_other_machine(tmp_path: Path) -> None:
    """Weights on a Windows share, and names by which open_clip fetches or reads what is named."""
    path = tmp_path / "part.offn"
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    offnominal.AnomalyDINO(backbone="builtin").fit([image]).save(path)
    header = modelfile.read_header(path)
    tensors = modelfile.read(path, header)
    for weights in (r"\\evil.example\share\x.pth", "//evil.example/share/x.pth", r"a,\\evil\s\x"):
        options = header["options"] | {"weights": weights}
        modelfile.write(path, header | {"options": options}, tensors)
        with pytest.raises(ModelFileError, match="its weights are on another machine"):
            offnominal.load(path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 1}}')
    for name in ("hf-hub:evil/model", f"local-dir:{str(tmp_path).partition('.')[0]}"):
        with pytest.raises(BackboneError, match="open_clip has no such model"):
            offnominal.WinCLIP(backbone=f"open_clip:{name}", weights=str(path)).fit()


# -- keys that come back ----------------------------------------------------------------------

DISGUISES: list[Callable[[str], str]] = [
    str,
    str.lower,
    urllib.parse.quote_plus,
    lambda key: urllib.parse.quote(key, safe="").lower(),
    lambda key: "".join(f"%{ord(char):02X}" for char in key),
    lambda key: base64.b64encode(key.encode()).decode(),
    lambda key: base64.b64encode(b"Bearer " + key.encode()).decode(),
    lambda key: base64.urlsafe_b64encode(b"ab" + key.encode() + b"c").decode(),
    lambda key: key.encode().hex(),
    lambda key: key.encode().hex(" "),
    lambda key: json.dumps(key).replace("<", "\\u003c"),
    lambda key: key.replace("&", "&amp;").replace("<", "&lt;"),
    lambda key: f"{key[:9]}\n  {key[9:]}",
    lambda key: "\u200b".join(key),
]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_key_is_known_in_disguise(disguise: Callable[[str], str]) -> None:
    hidden = disguise(KEY)
    found = blotter(KEY)(f"wrong key {hidden}, go away")
    assert hidden not in found
    left = found.replace("wrong key ", "").replace(", go away", "").strip('"=')
    assert len(left.replace("(key)", "")) <= 12, found
    assert "(key)" in found


def test_words_are_left_as_they_are() -> None:
    text = "a scratch 0123 below the bore; c2Vl aGVyZQ=="
    assert blotter(KEY)(text) == blotter(None)(text) == text
    assert blotter("ab")("abc YWI= 6162") == "(key)c YWI= 6162"


@pytest.mark.slow
def test_no_result_holds_the_key(part: Path, server: ChatServer, tmp_path: Path) -> None:
    """Whatever the endpoint answers, right or wrong, refused or redirected."""
    bearer = base64.b64encode(f"Bearer {KEY}".encode()).decode()
    repeats = f"{KEY} {bearer} {urllib.parse.quote(KEY)}"
    image = tmp_path / "image.png"
    long_name = "x" * 20 + KEY * 3
    for number, behaviour in enumerate(
        [
            answers(description=repeats),
            says(json.dumps(GOOD | {long_name: 1})),  # a name that a message would cut in two
            says("x" * 50 + KEY),
            says(None, refusal=repeats),
            fails(400, repeats),
            fails(401, repeats),
            sends(307, b"", Location=f"http://127.0.0.1:9/{urllib.parse.quote(KEY)}"),
            sends(200, repeats.encode()),
        ]
    ):
        server.script = [behaviour]
        output = tmp_path / f"out{number}"
        _, told = run("predict", part, image, "-o", output, "--endpoint", server.endpoint,
                      "--key-variable", "PART_KEY")  # fmt: skip
        written = told + "".join(file.read_text() for file in output.glob("*.[jc]s*"))
        assert "(key)" in written
        for secret in (KEY, KEY[:12], bearer[4:-4], urllib.parse.quote(KEY)):
            assert secret not in written, (number, written)


# -- replies that are too much ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (sends(200, b" " * 17 * 2**20), "over 16 MB"),
        (answers(boxes=GOOD["boxes"] * 300), "boxes: List should have at most 256"),
        (answers(description="a" * 30_000), "description: String should have at most"),
    ],
)
def test_a_reply_that_is_too_much_is_an_error(server: ChatServer, reply: Any, problem: str) -> None:
    server.script = [reply]
    errors: list[ImageError] = []
    detector = ChatModel(server.endpoint, "test", retries=0).fit()
    assert list(detector.stream([np.zeros((40, 40, 3), np.uint8)], errors.append)) == []
    assert problem in str(errors)


def test_damaged_good_images_are_refused(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "part.offn"
    ChatModel(server.endpoint, "test").fit([np.zeros((40, 40, 3), np.uint8)]).save(path)
    header = modelfile.read_header(path)
    tensors = modelfile.read(path, header)
    for ends in ([], [5], [10**9], ["5"], [5, 3], [True], None, {}, [0.5]):
        learned = header["learned"] | {"ends_": ends}
        modelfile.write(path, header | {"learned": learned}, tensors)
        with pytest.raises(ModelFileError):
            offnominal.load(path)
