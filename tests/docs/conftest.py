"""The folder, the weights and the server that the pages' commands run with."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chat_server import FINE, ChatServer, answers
from tests.docs import workbench
from tests.docs.running import FILES, Bench

from offnominal.detectors.methods import METHODS


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """What a page adds to the methods goes with the test."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
    for name in FILES.values():
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared") / "bench"
    workbench.prepare(root)
    return root


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return workbench.weights(tmp_path_factory.mktemp("networks") / "weights")


@pytest.fixture
def bench(
    prepared: Path,
    networks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    workbench.copy(prepared, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OFFNOMINAL_CACHE", str(tmp_path / ".cache"))
    with ChatServer(answers(FINE)) as chat:
        yield Bench(tmp_path, networks, chat, prepared.with_name("demo"))
