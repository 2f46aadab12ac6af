"""Weights from the hub: a real client against a small real server on loopback."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
from safetensors.torch import save

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


def offnominal(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with a cache of its own; the client reads its settings at import."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", "from offnominal.cli import main; main()", *arguments],
        env=clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_pull_then_work_offline(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, seen = hub
    pulled = offnominal(tmp_path, "backbones", "pull", "resnet18", HF_ENDPOINT=address)
    assert pulled.returncode == 0, pulled.stderr
    assert "resnet18: fetched" in pulled.stderr
    assert any(request.startswith("GET") for request in seen)

    again = offnominal(tmp_path, "backbones", "pull", "resnet18", HF_HUB_OFFLINE="1")
    assert "is on this machine" in again.stderr

    listed = offnominal(tmp_path, "backbones", HF_HUB_OFFLINE="1")
    lines = {line.split()[0]: line for line in listed.stdout.splitlines() if line.strip()}
    assert " here " in lines["resnet18"]
    assert " to fetch " in lines["dinov2_vits14"]
    assert " none needed " in lines["builtin"]

    code = (
        "import torch; from offnominal import load_backbone; b = load_backbone('resnet18');"
        "print(b.dim, tuple(b(torch.zeros(1, 3, 32, 32)).shape))"
    )
    used = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert used.stdout.strip() == "384 (1, 384, 4, 4)", used.stderr


def test_without_weights_the_error_names_three_ways_out(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    from PIL import Image

    Image.new("RGB", (64, 64)).save(good)
    failed = offnominal(
        tmp_path, "fit", str(good), "-o", str(tmp_path / "m.offn"), HF_HUB_OFFLINE="1"
    )
    assert failed.returncode == 2
    assert "HF_HUB_OFFLINE is set" in failed.stderr
    for way in ("offnominal backbones pull dinov2_vits14", "--weights FILE", "--backbone builtin"):
        assert way in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "m.offn").exists()


def test_a_repository_that_is_not_there(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, _ = hub
    failed = offnominal(tmp_path, "backbones", "pull", "resnet50", HF_ENDPOINT=address)
    assert failed.returncode == 2
    assert "cannot be fetched from timm/resnet50.tv_in1k" in failed.stderr
    assert "Traceback" not in failed.stderr
