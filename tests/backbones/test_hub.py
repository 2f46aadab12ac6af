"""Weights from the hub: a real client against a small real server on loopback."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from click.testing import Result
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner

from offnominal.backbones import load_backbone, weights
from offnominal.backbones.auto import choose_backbone
from offnominal.cli import app
from offnominal.errors import WeightsError

MAIN = "from offnominal.cli import main; main()"

REPOSITORY = "timm/resnet18.tv_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def content() -> bytes:
    model = timm.create_model("resnet18.tv_in1k", num_classes=1000)
    return save(model.state_dict())


@pytest.fixture
def hub(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serves one file of one repository as the hub does; yields its address and its requests."""
    seen: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            seen.append(f"{self.command} {self.path}")
            if self.path != f"/{REPOSITORY}/resolve/main/model.safetensors":
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def set_up(patch: pytest.MonkeyPatch, home: Path, address: str | None = None) -> None:
    """What the client reads from the environment when it is imported: offline without a hub."""
    patch.setattr(weights, "_silence", (0.0, ""))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", address is None)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_HUB_OFFLINE", "" if address else "1")
    if address is not None:
        template = address + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", address)


def offnominal(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, [*map(str, arguments)])


def test_pull_then_work_offline(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, seen = hub
    # As a user does it, since the client reads its settings when it is imported.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": address}
    pulled = subprocess.run(
        [sys.executable, "-c", MAIN, "backbones", "pull", "resnet18"],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert pulled.returncode == 0, pulled.stderr
    [file] = tmp_path.rglob("model.safetensors")
    assert f"resnet18: {file} (" in pulled.stderr
    assert any(request.startswith("GET") for request in seen)

    set_up(monkeypatch, tmp_path)
    again = offnominal("backbones", "pull", "resnet18")
    assert (again.exit_code, again.stderr) == (0, pulled.stderr)
    listed = offnominal("backbones")
    lines = {line.split()[0]: line for line in listed.stdout.splitlines() if line.strip()}
    assert " here " in lines["resnet18"]
    assert " to fetch " in lines["dinov2_vits14"]
    assert " none needed " in lines["builtin"]
    backbone = load_backbone("resnet18")
    with torch.inference_mode():
        assert (backbone.dim, backbone(torch.zeros(1, 3, 32, 32)).shape) == (384, (1, 384, 4, 4))


def test_without_weights_the_error_names_three_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, tmp_path)
    good = tmp_path / "good.png"
    Image.new("RGB", (64, 64)).save(good)
    failed = offnominal("fit", good, "--backbone", "dinov2_vits14", "-o", tmp_path / "m.offn")
    assert failed.exit_code == 2
    assert "HF_HUB_OFFLINE is set" in failed.stderr
    for way in ("offnominal backbones pull dinov2_vits14", "--weights FILE", "--backbone auto"):
        assert way in " ".join(failed.stderr.split())
    assert not (tmp_path / "m.offn").exists()


def test_a_repository_that_is_not_there(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, tmp_path, hub[0])
    failed = offnominal("backbones", "pull", "resnet50")
    assert failed.exit_code == 2
    assert "cannot be fetched from timm/resnet50.tv_in1k" in " ".join(failed.stderr.split())


def test_auto_takes_what_an_answering_hub_gives_and_nothing_less(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, tmp_path, hub[0])
    assert choose_backbone("resnet18") == ("resnet18", "")
    assert any(request.startswith("GET") for request in hub[1])
    refused = choose_backbone("resnet50")  # it answers, and has none
    assert refused.name != "resnet50"
    assert "offnominal backbones pull resnet50" in refused.note


def test_no_network_no_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, tmp_path)
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set.*pull open_clip:ViT-B-16"):
        load_backbone("open_clip:ViT-B-16")


@pytest.mark.parametrize("listens", [False, True])
def test_a_hub_that_does_not_answer_is_asked_once_and_shortly(
    listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PATIENCE", 0.4)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:  # and takes connections, but says nothing
            silent.listen()
        set_up(monkeypatch, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        for name in ("resnet18", "open_clip:ViT-B-16", "wide_resnet50_2"):
            with pytest.raises(WeightsError, match=f"cannot be fetched.*pull {name}"):
                load_backbone(name)
        assert time.monotonic() - began < 8, "open_clip alone takes seconds to import"
