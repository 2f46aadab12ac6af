"""RegAD on a small network: what it is trained to, what it moves back, and its Gaussians."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import offnominal
from offnominal import RegAD, load_backbone
from offnominal.detectors.meta.gaussians import distances, gaussians
from offnominal.detectors.meta.learnedfile import built, read_registered
from offnominal.detectors.meta.networks import copies, joined
from offnominal.detectors.meta.pairs import Pairs, made_category
from offnominal.detectors.meta.registration import RegistrationRecipe, train_registration
from offnominal.errors import ModelFileError, OptionError

SIDE = 48


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A residual network of half a million weights, drawn at random."""
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model("test_resnet", zero_init_last=False).state_dict()
    save_file(state, path, metadata={"model": "test_resnet"})
    return load_backbone(None, path)


@pytest.fixture(scope="module")
def learned(network: Any, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with transformers that have learned nothing."""
    path = tmp_path_factory.mktemp("learned") / "regad.safetensors"
    recipe = RegistrationRecipe(steps=0, resolution=SIDE)
    return train_registration(network, {"part": good(parts, "part")}, path, recipe)


def good(parts: Path, look: str = "fabric") -> list[Path]:
    return sorted((parts / look / "train" / "good").iterdir())


@pytest.mark.slow
def test_training_brings_images_of_a_category_together(
    network: Any, parts: Path, tmp_path: Path
) -> None:
    """The cosine of what is said of one to the code of the other rises from 0 towards 1."""
    recipe = RegistrationRecipe(steps=20, batch=4, lr=0.03, resolution=SIDE, augment="turns")
    categories = {look: good(parts, look) for look in ("fabric", "part")}
    path, lines = tmp_path / "regad.safetensors", list[str]()
    told = {"device": "cpu", "tell": lines.append}
    train_registration(network, categories, path, recipe, **told)
    assert lines[0] == "12 good images of 2 categories, 20 steps"
    assert float(lines[-1].rpartition(" ")[2]) < -0.15  # the mean of all steps
    registered, about = read_registered(path)
    assert about["categories"] == ["fabric", "part"]
    assert not registered.transformers[1].say[-1].bias.equal(torch.tensor([0.0, 1.0, 1.0]))
    # Once it is there, it is not trained again, and the bytes stay.
    before = path.read_bytes()
    train_registration(network, categories, path, recipe, **told)
    assert path.read_bytes() == before


def test_as_it_begins_it_is_the_network(network: Any, learned: Path) -> None:
    registered, about = read_registered(learned)
    assert (about["categories"], about["images"]) == (["part"], 6)
    pixels = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(each)[:, None, None] for each in (network.mean, network.std))
    with torch.no_grad():
        theirs = network.at_levels((1, 2, 3)).levels((pixels - mean) / std).maps
        ours = registered.upright(pixels)
    torch.testing.assert_close(ours, joined(theirs), rtol=1e-3, atol=1e-3)


def test_what_a_transformer_turned_is_turned_back(learned: Path) -> None:
    registered, _ = read_registered(learned)
    pixels = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        straight = registered.upright(pixels)
        registered.transformers[0].say[-1].bias[0] = torch.pi / 2
        seen, back = registered(pixels), registered.upright(pixels)
    channels = registered.widths[0]
    turned = seen.maps[0].rot90(-1, (2, 3))
    torch.testing.assert_close(turned, straight[:, :channels], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back[:, :channels], straight[:, :channels], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(back[:, channels:], straight[:, channels:], atol=1e-2)


def test_distances_are_those_of_whole_covariances() -> None:
    rng = np.random.default_rng(0)
    samples, query = rng.normal(size=(7, 3, 12)), rng.normal(size=(3, 12))
    mean, rows = gaussians(torch.tensor(samples, dtype=torch.float32), 0.01)
    found = distances(torch.tensor(query, dtype=torch.float32), mean, rows, 0.01)
    for place in range(3):
        covariance = np.cov(samples[:, place], rowvar=False) + 0.01 * np.eye(12)
        apart = query[place] - samples[:, place].mean(0)
        expected = np.sqrt(apart @ np.linalg.inv(covariance) @ apart)
        assert float(found[place]) == pytest.approx(expected, rel=1e-3)


def test_an_image_has_twenty_one_copies() -> None:
    image = torch.rand(3, 16, 16)
    made = copies(image)
    assert made.shape == (22, 3, 16, 16)
    assert made[0].equal(image)
    assert made[17].equal(image.flip(2)) or made[17].equal(image.flip(1))
    assert made[18].std(0).max() < 1e-6  # the grey one
    assert made[-3:].equal(torch.stack([image.rot90(n, (1, 2)) for n in (1, 2, 3)]))


@pytest.mark.slow
def test_it_is_fitted_scored_and_saved(learned: Path, parts: Path, tmp_path: Path) -> None:
    files = good(parts)[:3]
    detector = RegAD(learned=learned, device="cpu").fit(files, synthetic=False)
    alone = [
        RegAD(learned=learned, device="cpu")
        .fit([file for file in files if file != one], synthetic=False)
        .predict(one)[0]
        .score
        for one in files
    ]
    np.testing.assert_allclose(detector.calibration.images, alone, rtol=1e-3)
    [before] = detector.predict(good(parts)[3])
    assert before.patch_scores.shape == (SIDE // 4, SIDE // 4)
    detector.save(tmp_path / "part.offn")
    [after] = offnominal.load(tmp_path / "part.offn", device="cpu").predict(good(parts)[3])
    assert after.score == before.score
    assert after.threshold == before.threshold


def test_a_step_is_of_one_category_and_no_query_supports_itself() -> None:
    stored = np.zeros((9, 3, 8, 8), np.uint8)
    pairs = Pairs(stored, [[0, 1, 2, 3, 4], [5, 6, 7, 8]], 2, [], torch.device("cpu"))
    for step in pairs.plan(2, torch.Generator().manual_seed(0)):
        assert step.shape == (2, 3)
        assert len({int(number) > 4 for number in step.flatten()}) == 1
        assert all(len(set(row)) == 3 for row in step.tolist())


def test_made_categories_differ_in_what_all_their_images_share() -> None:
    first, other = (made_category(number, 0, 2) for number in (0, 2))
    assert len(first) == len(other) == 2
    assert first[0].shape == first[1].shape != other[0].shape


def test_mistakes_are_told(network: Any, learned: Path, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="train regad"):
        RegAD().fit(good(parts)[:2])
    with pytest.raises(ModelFileError, match=r"absent\.safetensors: does not exist"):
        RegAD(learned="absent.safetensors").fit(good(parts)[:2])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="no file of what RegAD learned"):
        RegAD(learned=tmp_path / "other.safetensors").fit(good(parts)[:2])
    with pytest.raises(OptionError, match="--dimensions 9999"):
        RegAD(learned=learned, dimensions=9999).fit(good(parts)[:2])
    with pytest.raises(OptionError, match="at most 32 images"):
        RegAD(learned=learned).fit(good(parts) * 6)
    for plan in (
        {"network": "hf-hub:a/b"},
        {"arguments": {"checkpoint_path": "a"}},
        {"levels": []},
    ):
        with pytest.raises(ValueError, match=r"timm|weights|levels"):
            built(read_registered(learned)[0].plan.plain() | plan)
    recipe = RegistrationRecipe(shots=6, resolution=SIDE)
    with pytest.raises(OptionError, match="part has 6 good images, and takes 7"):
        train_registration(
            network, {"part": good(parts, "part")}, tmp_path / "n.safetensors", recipe
        )
    with pytest.raises(OptionError, match="has no stages"):
        train_registration(load_backbone("builtin"), {}, tmp_path / "n.safetensors")
    with pytest.raises(OptionError, match="give data sets, or --looks 8"):
        train_registration(network, {}, tmp_path / "n.safetensors")
