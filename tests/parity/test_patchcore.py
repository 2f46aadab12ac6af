"""Agreement with PatchCore's released code on real images, with weights made from seeds."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.lib.npyio import NpzFile

from offnominal import Prediction
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.scoring import anomaly_map

# Of the reference's README.
CLOSE = {"rtol": 1e-3, "atol": 0.05}


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of the seeded WideResNet-50-2."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(z)
    elif name.endswith(("running_mean", "bias")):
        values = 0.02 * z
    elif len(shape) == 1:
        values = (0.5 if ".bn3" in name else 1.0) + 0.1 * z
    else:
        values = z * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict[str, Any], NpzFile]:
    folder = shared / "golden" / "patchcore"
    content: dict[str, Any] = json.loads((folder / "wide_resnet50_2.json").read_text())
    return content, np.load(folder / "wide_resnet50_2.npz")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        names = timm.create_model("wide_resnet50_2", num_classes=0).state_dict()
    path = tmp_path_factory.mktemp("seeded") / "wide_resnet50_2.pth"
    torch.save({name: draw(name, tuple(tensor.shape)) for name, tensor in names.items()}, path)
    return path


@pytest.fixture(scope="module")
def released(golden: tuple[dict[str, Any], NpzFile], tiles: Path, weights: Path) -> PatchCore:
    """As the released code was run: no coreset, squared distances, the plain maximum."""
    detector = PatchCore(
        weights=str(weights),
        coreset=1,
        reweight=False,
        distance="squared",
        crop=224,
        device="cpu",
    )
    detector.fit(tiles / name for name in golden[0]["config"]["refs"])
    assert detector.load_network().name == "wide_resnet50_2", "the paper's, unless another is named"
    return detector


@pytest.fixture(scope="module")
def found(
    golden: tuple[dict[str, Any], NpzFile], tiles: Path, released: PatchCore
) -> dict[str, Prediction]:
    names = golden[0]["config"]["tests"]
    return dict(zip(names, released.stream(tiles / name for name in names), strict=True))


@pytest.mark.slow
def test_bank(golden: tuple[dict[str, Any], NpzFile], released: PatchCore) -> None:
    content, arrays = golden
    rows = released.bank.rows
    assert list(rows.shape) == content["bank_shape"]
    np.testing.assert_allclose(rows[:8], arrays["bank_rows_first8"], rtol=1e-3, atol=1e-3)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms, arrays["bank_row_norms"], rtol=1e-4)


@pytest.mark.slow
def test_scores_and_maps(
    golden: tuple[dict[str, Any], NpzFile], found: dict[str, Prediction]
) -> None:
    content, arrays = golden
    for name, one in found.items():
        wanted = content["results"][name]
        np.testing.assert_allclose(one.patch_scores, arrays[f"patch_scores/{name}"], **CLOSE)
        assert one.score == pytest.approx(wanted["score"], rel=1e-3, abs=0.05)
        heat = anomaly_map(one.patch_scores, (224, 224), 4.0)
        assert float(heat.max()) == pytest.approx(wanted["map_max"], rel=1e-3, abs=0.05)
        assert float(heat.mean()) == pytest.approx(wanted["map_mean"], rel=1e-3, abs=0.05)


@pytest.mark.slow
def test_paper_differs_by_root_and_weight_only(
    golden: tuple[dict[str, Any], NpzFile],
    tiles: Path,
    released: PatchCore,
    found: dict[str, Prediction],
) -> None:
    """The defaults (eq. 6 and 7) on the same bank: a root, and a weight that lowers the score."""
    paper = PatchCore(weights=released.weights, coreset=1, crop=224, device="cpu")
    paper.use_network(released.load_network())
    paper.fit(tiles / name for name in golden[0]["config"]["refs"])
    [name, *_] = found
    [one] = paper.predict(tiles / name)
    np.testing.assert_allclose(one.patch_scores, np.sqrt(found[name].patch_scores), rtol=1e-5)
    assert 0.5 * one.patch_scores.max() < one.score < one.patch_scores.max()
