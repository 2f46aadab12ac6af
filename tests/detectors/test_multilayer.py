"""The multi-layer nearest-neighbour detector against a plain recomputation, and piece by piece."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import roc_auc_score
from tests.looks import pixels_of
from tests.seeded import save_dinov2_vits14

from offnominal import AnomalyDINO, load
from offnominal.backbones.positions import use_original_positions
from offnominal.backbones.weights import fit_to, read_weights
from offnominal.detectors.memory_bank.multilayer import MultiLayerNN
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.sizing import resize_image

PLAIN = {"rotations": "none", "reference_flips": False, "query_views": "plain"}
SMALL = {"backbone": "builtin", "resolution": 64, "device": "cpu"}


def images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))


@pytest.fixture(scope="module")
def fabrics(parts: Path) -> list[Path]:
    return images_of(parts / "fabric" / "train")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2_vits14(tmp_path_factory.mktemp("seeded"))


@pytest.mark.slow
def test_agrees_with_the_recipe_written_out(fabrics: list[Path], dinov2: Path) -> None:
    """Mean of blocks 2 to 9, six looks at each reference and these clamped, three at the query."""
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    fit_to(model, read_weights(dinov2), str(dinov2), "seeded")
    use_original_positions(model)
    model.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def pixels(file: Path) -> torch.Tensor:
        sized = torch.from_numpy(resize_image(read_image(file), 70, 14, "square") / 255.0)
        return ((sized.float() - mean) / std).permute(2, 0, 1)

    def tokens(looks: list[torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            found = model.get_intermediate_layers(torch.stack(looks), n=range(2, 10), norm=False)
        fused = torch.stack(found).mean(0).numpy()
        return fused / np.linalg.norm(fused, axis=-1, keepdims=True)

    def support(image: torch.Tensor) -> list[torch.Tensor]:
        turned = [torch.rot90(image, k, (1, 2)) for k in range(4)]
        return [*turned, image.flip(1), image.flip(2)]

    looks = [look for file in fabrics[:2] for look in support(pixels(file))]
    bank = tokens([*looks, *(look.clamp(min=0) for look in looks)]).reshape(-1, 384)
    query = pixels(fabrics[2])
    maps = []
    for change in (lambda x: x, lambda x: x.flip(-2), lambda x: x.clamp(min=0)):
        nearest = (1 - tokens([change(query)])[0] @ bank.T).min(1)
        maps.append(nearest.reshape(5, 5))
    wanted = (maps[0] + maps[1][::-1] + maps[2]) / 3

    detector = MultiLayerNN(
        weights=str(dinov2), resolution=70, query_views="plain,vflip,clamp", device="cpu"
    )
    [found] = detector.fit(fabrics[:2]).predict(fabrics[2])
    assert detector.load_network().layers == tuple(range(2, 10))
    np.testing.assert_allclose(found.patch_scores, wanted, atol=2e-5)
    assert found.score == pytest.approx(wanted.max(), abs=2e-5)


def test_summary_distance_is_that_of_the_class_tokens(fabrics: list[Path], dinov2: Path) -> None:
    options = PLAIN | {"weights": str(dinov2), "resolution": 70, "device": "cpu"}
    without = MultiLayerNN(**options).fit(fabrics[:2])
    weighted = MultiLayerNN(**options, summary_weight=2.0).fit(fabrics[:2])
    [a], [b] = without.predict(fabrics[3]), weighted.predict(fabrics[3])
    net = weighted.load_network()
    with torch.inference_mode():
        classes = [
            net.levels(pixels_of(weighted, read_image(file))[None], norm=False).summary[0]
            for file in (fabrics[0], fabrics[1], fabrics[3])
        ]
    distance = min(
        1 - torch.cosine_similarity(classes[2], each, dim=0).item() for each in classes[:2]
    )
    assert distance > 0
    np.testing.assert_allclose(b.patch_scores - a.patch_scores, 2 * distance, atol=1e-5)
    assert b.score - a.score == pytest.approx(2 * distance, abs=1e-5)


def test_without_its_pieces_it_is_anomalydino(fabrics: list[Path]) -> None:
    options = SMALL | {"resize": "square", "mask": "off"}
    one = AnomalyDINO(**options, rotations="none").fit(fabrics[:3])
    other = MultiLayerNN(**options, **PLAIN).fit(fabrics[:3])
    for a, b in zip(one.stream(fabrics[3:5]), other.stream(fabrics[3:5]), strict=True):
        np.testing.assert_allclose(a.patch_scores, b.patch_scores, rtol=1e-6)
        assert a.threshold == pytest.approx(b.threshold, rel=1e-6)


@pytest.mark.parametrize(
    "piece",
    [
        {"rotations": "0,90"},
        {"rotations": "0,30"},
        {"reference_flips": True},
        {"query_views": "plain,vflip"},
        {"query_views": ["plain", "hflip"]},
        {"summary_weight": 1.0},
        {"neighbours": 3},
    ],
)
def test_every_piece_changes_the_scores(fabrics: list[Path], piece: dict[str, object]) -> None:
    options = SMALL | PLAIN
    [without] = MultiLayerNN(**options).fit(fabrics[:2]).predict(fabrics[3])
    [with_it] = MultiLayerNN(**options | piece).fit(fabrics[:2]).predict(fabrics[3])
    assert not np.allclose(without.patch_scores, with_it.patch_scores)


def test_mask_parts_object_and_background_by_otsus_threshold(parts: Path) -> None:
    files = images_of(parts / "part" / "train")
    detector = MultiLayerNN(**SMALL | {"resolution": 128}, **PLAIN, mask="on").fit(files[:2])
    [found] = detector.predict(files[3])
    assert 0.2 < (found.patch_scores == 0).mean() < 0.9
    assert found.patch_scores[8, 8] > 0
    assert found.patch_scores[0, 0] == 0


def test_every_flip_of_a_query_is_undone(fabrics: list[Path]) -> None:
    """A flipped look scores as a flipped picture, and its map lies as the picture does."""
    reference, image = read_image(fabrics[0]), read_image(fabrics[2]).copy()
    image[:40, :40] = 255 - image[:40, :40]
    for view, axis in (("vflip", 0), ("hflip", 1)):
        options = SMALL | PLAIN | {"normalize": "none"}
        turned = MultiLayerNN(**options).fit([np.flip(reference, axis)])
        [wanted] = turned.predict(np.ascontiguousarray(np.flip(image, axis)))
        [found] = MultiLayerNN(**options | {"query_views": view}).fit([reference]).predict(image)
        np.testing.assert_allclose(
            found.patch_scores, np.flip(wanted.patch_scores, axis), rtol=1e-3, atol=1e-4
        )
        row, column = np.unravel_index(found.patch_scores.argmax(), (8, 8))
        assert row < 2
        assert column < 2


def test_leave_one_out_equals_refitting_without_the_reference(fabrics: list[Path]) -> None:
    options = SMALL | {"rotations": "0,45,90", "summary_weight": 0.5, "normalize": "l2"}
    detector = MultiLayerNN(**options).fit(fabrics[:3])
    assert detector.calibration.kind == "leave-one-out"
    for index in range(3):
        rest = [file for file in fabrics[:3] if file != fabrics[index]]
        [alone] = MultiLayerNN(**options).fit(rest).predict(fabrics[index])
        assert detector.calibration.images[index] == pytest.approx(alone.score, rel=1e-5)
        assert detector.calibration.peaks[index] == pytest.approx(alone.anomaly_map.max(), rel=1e-4)


def test_calibrate_on_limits_the_references_scored(fabrics: list[Path]) -> None:
    some = MultiLayerNN(**SMALL, **PLAIN, calibrate_on=2).fit(fabrics[:5])
    assert len(some.calibration.images) == 2


def test_saved_detector_predicts_the_same_bits(fabrics: list[Path], tmp_path: Path) -> None:
    detector = MultiLayerNN(**SMALL, rotations="0,90", summary_weight=0.5).fit(fabrics[:3])
    detector.save(tmp_path / "a.offn")
    loaded = load(tmp_path / "a.offn", device="cpu")
    assert isinstance(loaded, MultiLayerNN)
    for a, b in zip(detector.stream(fabrics[3:]), loaded.stream(fabrics[3:]), strict=True):
        assert (a.score, a.threshold) == (b.score, b.threshold)
        assert np.array_equal(a.anomaly_map, b.anomaly_map)
    [changed] = detector.rescored(aggregate="max").predict(fabrics[3])
    assert changed.score == pytest.approx(changed.patch_scores.max())


def test_levels_of_several_shapes_are_concatenated(mobilenet: Path, fabrics: list[Path]) -> None:
    detector = MultiLayerNN(weights=str(mobilenet), resolution=64, **PLAIN).fit(fabrics[:1])
    assert detector.bank.rows.shape == (64, 128)
    with pytest.raises(OptionError, match="--fusion mean"):
        MultiLayerNN(weights=str(mobilenet), resolution=64, fusion="mean").fit(fabrics[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_views": "plain,turned"}, "query_views 'turned'"),
        ({"query_views": []}, "at least one"),
        ({"rotations": "sometimes"}, "rotations"),
        ({"summary_weight": -1}, "--summary-weight -1"),
        ({"neighbours": 0}, "--neighbours 0"),
        ({"fusion": "sum"}, "fusion"),
        ({"calibrate_on": -1}, "--calibrate-on -1"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MultiLayerNN(**options)


def test_options_are_plain_and_complete() -> None:
    detector = MultiLayerNN(query_views=["plain", "clamp"], rotations=[0, 90])
    assert detector.options()["query_views"] == ("plain", "clamp")
    assert MultiLayerNN(**detector.options()).options() == detector.options()


@pytest.mark.slow
def test_real_tiles_with_a_real_network(tiles: Path, mobilenet: Path) -> None:
    """Eight good magnetic tiles at 128 px, then a share of the test set."""
    detector = MultiLayerNN(weights=str(mobilenet), rotations="0,180", resolution=128)
    detector.fit(images_of(tiles / "train")[::96][:8])
    test = images_of(tiles / "test")[::14]
    scores = [prediction.score for prediction in detector.stream(test)]
    assert roc_auc_score([f.parent.name != "good" for f in test], scores) > 0.6
