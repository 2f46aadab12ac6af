"""What tests share: where the real images, weights and reference outputs lie."""

import os
from pathlib import Path

import pytest

# Tests run side by side, one process a core: more threads in each would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# Small networks and few images: a graph of each would cost more than it saves, and what is compared
# to the last digit is torch's. The tests of engines say what they want.
os.environ.setdefault("OFFNOMINAL_ENGINE", "torch")

# What takes over five seconds of computing, by name: run before a release, not at every change.
LONG = frozenset((Path(__file__).parent / "release.txt").read_text().split("\n"))

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in LONG:
            item.add_marker(pytest.mark.release)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images, reference outputs and weights; absent in a user's clone."""
    if not SHARED.is_dir():
        reason = f"the folder of shared test material is absent: {SHARED}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return SHARED


@pytest.fixture(scope="session")
def tiles(shared: Path) -> Path:
    """Real images: Magnetic Tile Defects in MVTec layout."""
    return shared / "data" / "mtd" / "magnetic_tile"


@pytest.fixture(scope="session")
def mobilenet(shared: Path) -> Path:
    """Weights of a real ImageNet MobileNetV2, so that features mean something."""
    return shared / "weights" / "mobilenetv2_100_imagenet.safetensors"


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic parts in MVTec layout, a few of each look."""
    from offnominal.datasets.synthetic import write_dataset

    root = tmp_path_factory.mktemp("parts") / "parts"
    write_dataset(root, n_train=6, n_good=3, n_per_defect=1)
    return root


@pytest.fixture(scope="session")
def fabric_model(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector fitted on synthetic fabric, saved."""
    from offnominal import AnomalyDINO

    path = tmp_path_factory.mktemp("model") / "fabric.offn"
    detector = AnomalyDINO(backbone="builtin", rotations="none", false_reject=0.2)
    detector.fit(sorted((parts / "fabric" / "train" / "good").iterdir())).save(path)
    return path
