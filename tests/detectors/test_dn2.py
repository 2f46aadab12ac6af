"""DN2 against its formula, and as a user meets it."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestNeighbors
from tests.looks import pixels_of
from tests.seeded import save_dinov2_vits14
from torch import Tensor

from offnominal import load
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.memory_bank.dn2 import DN2, neighbour_distance
from offnominal.errors import OptionError

SIDE = 64


def save_resnet18(folder: Path) -> Path:
    """A ResNet-18 drawn from a seed, in timm's naming."""
    path = folder / "resnet18_seeded.safetensors"
    torch.manual_seed(3)
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    for name in state:
        if name.endswith("bn2.weight"):  # drawn as 0, which would leave every block without effect
            state[name].fill_(1)
    save_file(state, path)
    return path


def stages(weights: Path, image: Path | np.ndarray, side: int = SIDE) -> list[Tensor]:
    """Outputs of a ResNet-18's four stages (C, h, w), for an image squashed to a square."""
    model = _plain_resnet18(weights)
    with Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image) as opened:
        small = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = torch.tensor(((np.asarray(small) / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
        found = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            found.append(x[0])
    return found


@cache
def _plain_resnet18(weights: Path) -> Any:
    model = timm.create_model("resnet18", num_classes=0).eval()
    model.load_state_dict(load_file(weights))
    return model


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet18(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def files(tiles: Path) -> list[Path]:
    """Real images: six good ones, then two more."""
    return sorted((tiles / "train" / "good").iterdir())[::60][:8]


@pytest.fixture(scope="module")
def fitted(resnet18: Path, files: list[Path]) -> DN2:
    options = {"backbone": "resnet18", "resolution": SIDE, "resize": "square"}
    return DN2(**options, weights=str(resnet18), device="cpu", false_reject=0.2).fit(files[:6])


def test_agrees_with_the_formula(fitted: DN2, resnet18: Path, files: list[Path]) -> None:
    """Mean of the squared distances to the two nearest, by scikit-learn in float64."""
    vectors = [stages(resnet18, file)[3].mean((1, 2)).double().numpy() for file in files]
    index = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(np.stack(vectors[:6]))
    distances, _ = index.kneighbors(np.stack(vectors[6:]))
    for found, wanted in zip(fitted.predict(files[6:]), (distances**2).mean(1), strict=True):
        assert found.score == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_leave_one_out_equals_refitting(fitted: DN2, files: list[Path]) -> None:
    assert fitted.calibration.kind == "leave-one-out"
    for index, file in enumerate(files[:6]):
        again = DN2(**fitted.options(), device="cpu")
        again.use_network(fitted.load_network())
        again.fit([f for f in files[:6] if f != file])
        [alone] = again.predict([file])
        assert fitted.calibration.images[index] == pytest.approx(alone.score, rel=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3, 5, 6, 50])
def test_a_reference_never_scores_lower_without_itself(neighbours: int) -> None:
    """With too few references for k as well, where the number used must not change."""
    rng = np.random.default_rng(0)
    vectors = torch.tensor(rng.standard_normal((6, 9)), dtype=torch.float32)
    fresh = torch.tensor(rng.standard_normal((40, 9)), dtype=torch.float32)
    whole, order = neighbour_distance(vectors, fresh, neighbours)
    assert order.shape == (40, 6)
    for left_out in range(6):
        without, others = neighbour_distance(vectors, fresh, neighbours, skip=left_out)
        assert (without >= whole).all()
        assert others.shape == (40, 5)
        assert not (others == left_out).any()


def test_the_map_says_nothing_of_where(fitted: DN2, tmp_path: Path) -> None:
    odd = np.zeros((40, 60, 3), np.uint8)
    [found] = fitted.predict(odd)
    assert found.is_anomalous
    assert found.patch_scores.shape == (1, 1)
    assert found.anomaly_map.shape == (40, 60)
    np.testing.assert_allclose(found.anomaly_map, found.score, rtol=1e-5)
    [region] = found.regions()
    assert region.area == 40 * 60
    with torch.inference_mode():
        scores, grids = fitted(pixels_of(fitted, odd)[None])
    assert scores.tolist() == [found.score]
    assert grids.flatten().tolist() == [found.score]
    for how in ("top1", "mean", "map-max"):
        other = fitted.rescored(aggregate=how)
        assert other.rescore(found).score == pytest.approx(found.score, rel=1e-5)


def test_saved_and_loaded(fitted: DN2, files: list[Path], tmp_path: Path) -> None:
    fitted.save(tmp_path / "part.offn")
    loaded = load(tmp_path / "part.offn", device="cpu")
    assert isinstance(loaded, DN2)
    for a, b in zip(fitted.predict(files[6:]), loaded.stream(files[6:]), strict=True):
        assert (a.score, a.threshold, a.p_value) == (b.score, b.threshold, b.p_value)
        assert np.array_equal(a.anomaly_map, b.anomaly_map)


def test_few_references(fitted: DN2, files: list[Path]) -> None:
    one = DN2(**fitted.options(), device="cpu")
    one.use_network(fitted.load_network())
    [found] = one.fit(files[:1]).predict(files[1:2])
    assert found.score > 0
    assert found.threshold is not None
    [same] = one.predict(files[:1])
    assert same.score == 0


def test_the_weights_name_the_network_and_the_paper_otherwise(mobilenet: Path) -> None:
    told = DN2(weights=str(mobilenet)).load_network()
    assert told.name.startswith("mobilenetv2_100")
    assert told.layers == (4,)
    assert DN2.default_backbone.startswith("resnet101")


@pytest.mark.slow
def test_any_backbone_serves(tmp_path: Path) -> None:
    images = [draw_good("fabric", 0, index) for index in range(4)]
    weights = str(save_dinov2_vits14(tmp_path))
    for options in (
        {"backbone": "builtin"},
        {"backbone": "dinov2_vits14", "weights": weights, "resolution": 56},
    ):
        detector = DN2(**options, device="cpu").fit(images[:3])
        [found] = detector.predict(images[3])
        assert 0 < found.score < np.inf
    assert detector.vectors_.shape == (3, 384), "the class token"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "--neighbours 0"),
        ({"aggregate": "median"}, "--aggregate median"),
        ({"tile": 256}, "--tile 256: dn2 looks at images as a whole"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DN2(**options)
