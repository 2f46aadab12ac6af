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

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner, Result

from offnominal.backbones import hub as hub_of
from offnominal.backbones import load_backbone
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
    patch.setattr(hub_of, "_silence", (0.0, ""))
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


@pytest.mark.slow
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


def test_a_gateway_that_is_down_is_told_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Down(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(self.path)
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Down)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    set_up(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")
    failed = offnominal("backbones", "pull", "open_clip:ViT-B-16")
    server.shutdown()
    server.server_close()
    assert failed.exit_code == 2
    assert "503" in failed.stderr
    assert "open_clip_model.safetensors of timm/vit_base_patch16_clip_224.openai" in failed.stderr
    assert failed.stderr.rstrip().endswith("efficientnet_lite2")
    assert len(seen) == 1, "retries take a minute"


def cached(home: Path, repository: str, file: str) -> Path:
    """A file in the hub's cache, as the client puts it there."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    path = folder / "snapshots" / COMMIT / file
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.mark.parametrize("silent", [False, True])
def test_what_is_in_the_cache_is_found_in_whatever_repository(
    silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to be offline, or with a hub that does not answer."""
    set_up(monkeypatch, tmp_path, "http://127.0.0.1:9" if silent else None)
    clip = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    for name, repository, file in [
        ("rdnet_tiny.nv_in1k", "naver-ai/rdnet_tiny.nv_in1k", "model.safetensors"),
        ("rdnet_base", "naver-ai/rdnet_base.nv_in1k", "model.safetensors"),
        ("vit_base_patch16_clip_quickgelu_224.openai", "timm/vit_base_patch16_clip_224.openai",
         "model.safetensors"),
        ("fastvit_mci0", "apple/mobileclip_s0_timm", "model.safetensors"),
        ("open_clip:ViT-B-16.laion2b_s34b_b88k", clip, "open_clip_model.safetensors"),
        ("open_clip:ViT-B-32", "timm/vit_base_patch32_clip_224.openai",
         "open_clip_pytorch_model.bin"),
    ]:  # fmt: skip
        missing = offnominal("backbones", "pull", name)
        assert missing.exit_code == 2
        assert f"from {repository} (" in " ".join(missing.stderr.split())
        path = cached(tmp_path, repository, file)
        found = offnominal("backbones", "pull", name)
        assert (found.exit_code, found.stderr) == (0, f"{name}: {path} (0 MiB)\n")


@pytest.mark.slow
def test_a_network_of_another_repository_works_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a fit to a prediction; its weights are drawn at random."""
    set_up(monkeypatch, tmp_path)
    name = "fastvit_mci0.apple_mclip"
    path = cached(tmp_path, "apple/mobileclip_s0_timm", "model.safetensors")
    path.write_bytes(save(timm.create_model(name).state_dict()))
    noise, model = np.random.default_rng(0), tmp_path / "m.offn"
    for number in range(2):
        picture = noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    options = ["--method", "padim", "--resolution", 64, "--backbone", name, "-o", model]
    fitted = offnominal("fit", tmp_path / "0.png", tmp_path / "1.png", *options)
    assert fitted.exit_code == 0, fitted.output
    scored = offnominal("predict", model, tmp_path / "0.png")
    assert scored.exit_code == 0, scored.output


@pytest.mark.parametrize("name", ["resnet18.**", "resnet18.[x", "open_clip:ViT-B-16.**", "a**b"])
def test_odd_names_are_names_of_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, tmp_path)
    refused = offnominal("backbones", "pull", name)
    assert refused.exit_code == 2
    assert name.partition(".")[0].removeprefix("open_clip:") in refused.stderr


@pytest.mark.parametrize(("word", "offline"), [("false", False), ("0", False), ("on", True)])
def test_offline_is_what_the_client_takes_for_it(
    word: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", word)
    assert hub_of.is_offline() is offline
    code = "from huggingface_hub.constants import HF_HUB_OFFLINE; print(HF_HUB_OFFLINE)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(offline)


def test_a_pull_waits_for_longer(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, tmp_path, hub[0])
    waited: list[float] = []

    def ask(repository: str, filename: str, patience: float) -> str:
        waited.append(patience)
        return "slow"

    monkeypatch.setattr(hub_of, "_asked", ask)
    for name in ("resnet18", "resnet34.a1_in1k", "open_clip:ViT-B-16"):
        assert "(slow)" in offnominal("backbones", "pull", name).stderr
    with pytest.raises(WeightsError):
        load_backbone("resnet18")
    for told in ("7", "nan", "-1", "soon"):
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", told)
        offnominal("backbones", "pull", "resnet18")
    assert waited == [10, 10, 10, 2, 7, 10, 10, 10]


def test_repositories_of_clip_are_those_of_open_clip() -> None:
    from offnominal.backbones.catalogue import CLIP_REPOSITORIES, CLIP_TAGS, OPEN_CLIP
    from offnominal.backbones.clip_files import hub_files

    for name in CLIP_TAGS:
        places = hub_files(OPEN_CLIP + name)
        assert [place for place, _ in places] == [CLIP_REPOSITORIES[name]] * 2
        assert tuple(file for _, file in places) == hub_of.CLIP_FILES


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
    monkeypatch.setattr(hub_of, "_PATIENCE", 0.4)
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
