"""Agreement with MuSc's released code on real images, with a CLIP tower made from seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.npyio import NpzFile
from tests.looks import pixels_of
from tests.seeded import CLIP_DEEP, save_clip
from torch import Tensor

from offnominal import Prediction
from offnominal.detectors.batch.musc import MuSc, aligned_map
from offnominal.detectors.batch.mutual import mutual_scores, rescored_by_neighbours
from offnominal.images import Picture, read_image


class Run:
    """The stored run of the reference, and ours, step by step, on the same images."""

    def __init__(self, shared: Path, tiles: Path, folder: Path) -> None:
        stored = shared / "golden" / "vision_language"
        content = json.loads((stored / "musc.json").read_text())
        self.config = content["config"]
        self.names: list[str] = self.config["tests"]
        self.results: list[dict[str, float]] = [content["results"][n] for n in self.names]
        self.arrays: NpzFile = np.load(stored / "musc.npz")

        # With every default of its own but for the weights.
        self.detector = MuSc(weights=str(save_clip(folder, CLIP_DEEP)), device="cpu")
        self.detector.load_network()
        self.detector.begin()
        images = [read_image(tiles / name) for name in self.names]
        with torch.inference_mode():
            for index, image in enumerate(images):
                self.detector.take(index, image)
            self.tokens = torch.stack(self.detector._tokens)
            self.features = [list(level) for level in self.detector._features]
            self.detector.compare_all(len(images), None)
            self.predictions: list[Prediction] = [
                self.detector.prediction(
                    name, Picture(image, 8, 255), self.detector.judge_image(index, image)
                )
                for index, (name, image) in enumerate(zip(self.names, images, strict=True))
            ]

    def wanted(self, key: str) -> np.ndarray:
        return np.array([result[key] for result in self.results])


@pytest.fixture(scope="module")
def run(shared: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(shared, tiles, tmp_path_factory.mktemp("seeded"))


def close(found: Tensor | np.ndarray | list[float], wanted: np.ndarray, within: float) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=within)


@pytest.mark.slow
def test_layers_and_tokens(run: Run, tiles: Path) -> None:
    net = run.detector.load_network()
    assert [layer + 1 for layer in net.layers] == run.config["features_list"]
    close(run.tokens, np.stack([run.arrays[f"class_token/{n}"] for n in run.names]), 1e-5)
    pixels = pixels_of(run.detector, read_image(tiles / run.names[0]))
    with torch.inference_mode():
        maps = net.levels(pixels[None], norm=False).maps
    rows = torch.stack([each[0].flatten(1).T[::37] for each in maps])
    close(rows, run.arrays["patch_tokens_first_image_rows_0::37"], 1e-4)
    first = run.features[0][0].permute(2, 0, 1)
    around = F.normalize(F.avg_pool2d(first, 3, stride=1, padding=1), dim=0)
    stored = run.arrays["aggregated_r3_layer6_first_image_rows_0::37"]
    close(around.flatten(1).T[::37], stored, 1e-5)


@pytest.mark.slow
def test_patch_scores_of_every_neighbourhood(run: Run) -> None:
    with torch.inference_mode():
        levels = [mutual_scores(each, range(len(run.names))) for each in run.features]
    scores = torch.stack([torch.stack(level) for level in levels]).mean(0)
    for index, side in enumerate(run.config["r_list"]):
        close(scores[:, index], run.arrays[f"patch_scores_r{side}"], 1e-4)


def test_patch_scores_and_maps(run: Run) -> None:
    found = np.stack([prediction.patch_scores for prediction in run.predictions])
    close(found, run.arrays["patch_scores_mean"], 1e-4)
    size, step = run.config["image_size"], run.config["map_stride"]
    maps = np.stack([aligned_map(each, (size, size)) for each in found])
    close(maps[:, ::step, ::step], run.arrays["map"], 1e-4)
    for key, own in (
        ("map_max", maps.max((1, 2))),
        ("map_min", maps.min((1, 2))),
        ("map_mean", maps.mean((1, 2))),
        ("score_before_rscin", maps.max((1, 2))),
    ):
        close(own, run.wanted(key), 1e-4)
    for prediction in run.predictions:
        assert prediction.anomaly_map.shape == prediction.image.shape[:2]
        assert prediction.anomaly_map[0, 0] == prediction.patch_scores[0, 0]


@pytest.mark.parametrize("sizes", [(1, 2, 3), (1, 4, 6)])
def test_rescoring(run: Run, sizes: tuple[int, ...]) -> None:
    wanted = run.wanted("score_rscin_k" + "".join(map(str, sizes)))
    tokens = torch.from_numpy(np.stack([run.arrays[f"class_token/{n}"] for n in run.names]))
    before = torch.from_numpy(run.wanted("score_before_rscin"))
    close(rescored_by_neighbours(before, tokens, sizes), wanted, 1e-5)


def test_image_scores(run: Run) -> None:
    """The whole way, where min-max enlarges what the network's rounding leaves."""
    close([p.score for p in run.predictions], run.wanted("score_rscin_k123"), 1e-3)
