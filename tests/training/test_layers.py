"""Training of APRIL-GAN's layers on real images with a small tower."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.training.material import contents, write_half

from offnominal import load
from offnominal.backbones.cache import FeatureCache
from offnominal.backbones.weights import digest as digest_of
from offnominal.datasets import open_dataset
from offnominal.datasets.dataset import Dataset
from offnominal.datasets.masks import sample_mask
from offnominal.detectors.language.april_gan import AprilGAN
from offnominal.detectors.language.training.learners import TRAINABLE, LanguageRecipe, LayerLearner
from offnominal.detectors.language.training.losses import Batch
from offnominal.detectors.language.training.samples import choose_samples
from offnominal.detectors.language.training.tower import Tower
from offnominal.errors import DatasetError, ImageError, ModelFileError, OptionError
from offnominal.images import read_image
from offnominal.language.learned import LearnedPrompts, Projections
from offnominal.language.learnedfile import read_learned
from offnominal.language.prompts import APRIL_GAN
from offnominal.metrics.image import image_metrics
from offnominal.train import Outcome, train
from offnominal.training.checkpoint import mean_losses, read_losses

pytestmark = pytest.mark.slow

QUICK = LanguageRecipe(epochs=2, batch=5, local_weight=1.0)


def april_gan(weights: Path, **options: Any) -> AprilGAN:
    return AprilGAN(weights=str(weights), device="cpu", **({"resolution": 112} | options))


def trained(weights: Path, data: Dataset, path: Path, **options: Any) -> Outcome:
    recipe = options.pop("recipe", QUICK)
    return train(april_gan(weights), data, path, recipe, **options)


def test_training_finds_defects_on_other_images(weights: Path, tiles: Path, tmp_path: Path) -> None:
    """Layers learned on one half lower the loss, and raise the pixel AUROC on the other half."""
    halves = [
        open_dataset(write_half(tiles, tmp_path / str(half), half, each=10)) for half in (0, 1)
    ]
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    cache = FeatureCache(tmp_path / "cache", 10**9)
    for path, epochs in ((before, 0), (after, 3)):
        detector = april_gan(weights, resolution=160)
        recipe = LanguageRecipe(epochs, batch=4, local_weight=1.0)
        outcome = train(detector, halves[0], path, recipe, cache=cache)
    means = [mean["total"] for mean in mean_losses(outcome.history)]
    assert means[-1] < 0.95 * means[0]

    def measure(projections: Path) -> float:
        test = halves[1].test("tile")
        detector = april_gan(weights, projections=projections, resolution=None).fit()
        found = detector.predict([sample.image for sample in test])
        truth = [sample_mask(s, p.image.shape[:2]) for s, p in zip(test, found, strict=True)]
        pixels = np.concatenate([p.anomaly_map.ravel()[::7] for p in found])
        marked = np.concatenate([mask.ravel()[::7] for mask in truth if mask is not None])
        return image_metrics(marked, pixels)["image_auroc"]

    first, last = measure(before), measure(after)
    assert last > first + 0.15
    assert last > 0.7


def random_batch(names: list[str], grid: tuple[int, int] = (3, 4)) -> Batch:
    generator = torch.Generator().manual_seed(5)
    count, patches = len(names), grid[0] * grid[1]
    levels = [torch.randn(count, patches, 128, generator=generator) for _ in range(2)]
    truth = torch.zeros(count, 9, 12)
    truth[1:, 2:5, 3:9] = 1
    whole = torch.zeros(count, 64)
    return Batch(whole, levels, grid, torch.tensor([0, 1, 1]), truth, names)


def corner_to_corner(coarse: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear enlargement in which the corners stay where they are."""
    high, wide = coarse.shape
    full = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            y, x = i * (high - 1) / (rows - 1), j * (wide - 1) / (columns - 1)
            top, left = min(int(y), high - 2), min(int(x), wide - 2)
            a, b = y - top, x - left
            four = coarse[top : top + 2, left : left + 2]
            full[i, j] = np.array([1 - a, a]) @ four @ np.array([1 - b, b])
    return full


def test_the_loss_is_the_papers(weights: Path) -> None:
    """Written out: layer, cosines / 0.01, enlarged, softmax, focal and Dice, sum of levels."""
    detector = april_gan(weights, layers=(1, 3))
    generator = torch.Generator().manual_seed(2)
    learner = LayerLearner(detector, QUICK, ["nut", "tile"], {}, generator)
    names = ["nut", "tile", "nut"]
    batch = random_batch(names)
    assert batch.truth is not None
    parts = learner.loss(batch)
    text = detector.clip.load_text()
    focal = dice = 0.0
    for tokens, layer in zip(batch.levels, learner.learned.layers, strict=True):
        assert isinstance(layer, torch.nn.Linear)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        overlaps, pixels = [], []
        for own, name, truth in zip(tokens.numpy(), names, batch.truth.numpy(), strict=True):
            normal, abnormal = APRIL_GAN.features(text, name).double().numpy()
            brought = own @ weight.T + bias
            unit = brought / np.linalg.norm(brought, axis=1, keepdims=True)
            low, high = (
                corner_to_corner((unit @ state / 0.01).reshape(batch.grid), 9, 12)
                for state in (normal, abnormal)
            )
            share = 1 / (1 + np.exp(low - high))
            overlaps.append((2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1))
            right = np.where(truth > 0, share, 1 - share)
            seen = (1 - 1e-5) * right + 1e-5 * (1 - right) + 1e-5
            pixels.append(-((1 - seen) ** 2) * np.log(seen))
        dice += 1 - np.mean(overlaps)
        focal += np.mean(pixels)
    assert parts["focal"].item() == pytest.approx(focal, rel=1e-4)
    assert parts["dice_abnormal"].item() == pytest.approx(dice, rel=1e-4)
    assert parts["total"].item() == pytest.approx(focal + dice, rel=1e-4)
    assert parts["image"].item() == parts["dice_normal"].item() == 0
    torch.autograd.backward(parts["total"])
    assert all(p.grad is not None and p.grad.any() for p in learner.learned.parameters())
    halved = LayerLearner(
        detector,
        LanguageRecipe(local_weight=0.5),
        ["nut", "tile"],
        {},
        torch.Generator().manual_seed(2),
    )
    assert halved.loss(batch)["total"].item() == pytest.approx((focal + dice) / 2, rel=1e-4)


def test_first_values_are_those_of_torchs_layers() -> None:
    drawn = Projections(400, 300, 2, torch.Generator().manual_seed(1))
    for parameter in drawn.parameters():
        assert parameter.abs().max() <= 1 / 20
        assert parameter.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.15)
    again = Projections(400, 300, 2, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.layers[1].weight, again.layers[1].weight)  # type: ignore[arg-type]  # ModuleList


def test_what_the_tower_gives_is_raw_tokens(weights: Path, small: Dataset) -> None:
    detector = april_gan(weights, layers=(1, 3))
    samples = choose_samples(small.samples, "test", True, small.root).samples
    batch = Tower(detector, samples, True, names={"tile": "magnetic tile"}).load([(2,), (0,)])
    assert batch is not None
    assert batch.names == ["magnetic tile"] * 2
    assert [tuple(level.shape) for level in batch.levels] == [(2, 49, 128)] * 2
    pixels = torch.from_numpy(detector.views(read_image(samples[2].image))[0].pixels)[None]
    with torch.no_grad():
        tokens = detector.clip.tokens(pixels, (1, 3))
        whole = F.normalize(detector.clip.project(tokens.last[:, 0]), dim=-1)
    for level, block in zip(batch.levels, tokens.blocks, strict=True):
        assert torch.equal(level[0], block[0, 1:])
    assert torch.equal(batch.whole[0], whole[0])


@pytest.fixture(scope="module")
def whole(weights: Path, small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained(weights, small, tmp_path_factory.mktemp("whole") / "layers.safetensors")


def test_files_and_page(weights: Path, small: Dataset, whole: Outcome, tmp_path: Path) -> None:
    detector = april_gan(weights)
    layers, about = read_learned(whole.files.learned, Projections)
    assert layers.settings() == {"width": 128, "embed_dim": 64, "levels": 4}
    assert about.method == "april-gan"
    assert about.reading["layers"] == [0, 1, 2, 3]
    assert about.reading["resolution"] == 112
    assert about.backbone["digest"] == detector.clip.digest == digest_of(detector.clip.visual)
    assert about.training["recipe"] | {"epochs": 2, "mosaic": 0.0} == about.training["recipe"]
    drawn = trained(
        weights,
        small,
        tmp_path / "drawn.safetensors",
        recipe=LanguageRecipe(0, 5, local_weight=1.0),
    )
    first, _ = read_learned(drawn.files.learned, Projections)
    for (name, a), (_, b) in zip(first.named_parameters(), layers.named_parameters(), strict=True):
        assert not torch.equal(a, b), name
    for row in read_losses(whole.files.losses):
        assert row["total"] == pytest.approx(row["focal"] + row["dice_abnormal"], rel=1e-5)
        assert (row["image"], row["dice_normal"]) == (0, 0)
    page = whole.files.page.read_text()
    assert "Training of APRIL-GAN’s layers on tiles" in page
    assert "Maps, focal" in page
    assert "The loss is the sum of both parts." in page
    assert "prompts" not in page
    assert "Images</dt>" not in page


def test_a_page_says_that_weights_are_not_pretrained(
    weights: Path, small: Dataset, whole: Outcome, tmp_path: Path
) -> None:
    """A banner at the top; weights whose file says nothing against them are not marked."""
    page = whole.files.page.read_text()
    note = "The weights of its network were not pretrained (drawn at random from seeds)"
    assert page.count(note) == 1
    assert page.index("</h1>") < page.index('class="banner"') < page.index('class="headline"')

    with safe_open(weights, framework="pt") as file:
        said = {key: value for key, value in file.metadata().items() if key != "pretrained"}
    save_file(load_file(weights), tmp_path / "silent.safetensors", metadata=said)
    silent = trained(tmp_path / "silent.safetensors", small, tmp_path / "layers.safetensors")
    assert "banner" not in silent.files.page.read_text().split("<body>")[1]


@pytest.mark.parametrize(("stop", "mosaic"), [(4, 0.0), (1, 0.6)])
def test_interrupted_and_resumed_is_uninterrupted(
    weights: Path, small: Dataset, tmp_path: Path, stop: int, mosaic: float
) -> None:
    """Mosaics too are drawn again as they were."""
    recipe = LanguageRecipe(epochs=2, batch=5, local_weight=1.0, mosaic=mosaic)
    steps = 0

    def break_off(stage: str, done: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    undisturbed = trained(weights, small, tmp_path / "a.safetensors", recipe=recipe)
    path = tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(weights, small, path, recipe=recipe, progress=break_off)
    torch.manual_seed(stop)  # what others draw meanwhile makes no difference
    rest = trained(weights, small, path, recipe=recipe)
    assert rest.began_at == divmod(stop, 3)
    assert contents(rest.files) == contents(undisturbed.files)


def test_mosaics_are_another_training(weights: Path, small: Dataset, tmp_path: Path) -> None:
    path, recipe = tmp_path / "p.safetensors", LanguageRecipe(epochs=1, batch=5, local_weight=1.0)
    made = trained(weights, small, path, recipe=recipe)
    with pytest.raises(OptionError, match=r"whose mosaic is 0\.0, not 0\.2"):
        trained(weights, small, path, recipe=LanguageRecipe(1, 5, local_weight=1.0, mosaic=0.2))
    with pytest.raises(OptionError, match=r"whose class_names is \{\}, not"):
        trained(weights, small, path, recipe=recipe, class_names={"tile": "magnetic tile"})
    other = tmp_path / "q.safetensors"
    named = trained(weights, small, other, recipe=recipe, class_names={"tile": "magnetic tile"})
    assert named.history != made.history, "the texts say what the part is called"


def test_the_cache_changes_nothing_but_the_time(
    weights: Path, small: Dataset, whole: Outcome, tmp_path: Path
) -> None:
    told: list[str] = []
    cache = FeatureCache(tmp_path / "cache", 10**8)
    again = trained(weights, small, tmp_path / "p.safetensors", cache=cache, tell=told.append)
    assert contents(again.files) == contents(whole.files)
    assert "features of 12 views computed, of 12 found" in told
    tiny = FeatureCache(tmp_path / "tiny", 300_000)
    trained(weights, small, tmp_path / "q.safetensors", cache=tiny, tell=told.append)
    assert any("--cache-limit gives it more" in line for line in told)


def test_fit_reads_them_as_they_were_trained(weights: Path, small: Dataset, tmp_path: Path) -> None:
    path, model = tmp_path / "layers.safetensors", tmp_path / "part.offn"
    train(april_gan(weights, layers=(1, 3)), small, path, LanguageRecipe(1, 5, local_weight=1.0))
    options: dict[str, Any] = {"weights": str(weights), "device": "cpu", "projections": path}
    detector = AprilGAN(**options)
    image = small.test("tile")[0].image
    for good in ([], [s.image for s in small.samples if s.label == 0][:2]):
        detector.fit(good)
        assert detector.reading()["layers"] == [1, 3]
        [found] = detector.predict(image)
        assert found.patch_scores.shape == (112, 112)
        detector.save(model)
        [again] = load(model).predict(image)
        assert again.score == found.score
        np.testing.assert_array_equal(again.anomaly_map, found.anomaly_map)
    # Given, a resolution holds; each layer belongs to its level.
    [finer] = AprilGAN(**options, resolution=128).fit().predict(image)
    assert finer.patch_scores.shape == (128, 128)
    AprilGAN(**options, layers=(1, 3)).fit()
    with pytest.raises(OptionError, match=r"--layers 0,3: .* trained for levels 1,3"):
        AprilGAN(**options, layers=(0, 3)).fit()
    with pytest.raises(ModelFileError, match="as many --layers"):
        AprilGAN(**options, layers=(3,)).fit()
    with pytest.raises(OptionError, match="layers were trained with activation"):
        AprilGAN(**options, activation="quickgelu").fit()
    with pytest.raises(ModelFileError, match="layers of april-gan, not prompts; use --method"):
        read_learned(path, LearnedPrompts)


def test_what_cannot_be_trained_on(small: Dataset, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="layers are learned from maps alone"):
        trained(
            weights, small, tmp_path / "p.safetensors", recipe=LanguageRecipe(1, local_weight=0)
        )
    with pytest.raises(OptionError, match="length: the layers of april-gan have none"):
        trained(weights, small, tmp_path / "p.safetensors", settings={"length": 4})
    bare = [s for s in small.samples if s.label == 0 or s.mask is None]
    with pytest.raises(DatasetError, match="no defective image"):
        choose_samples(bare, "test", True, small.root)
    advice = TRAINABLE["april-gan"].learner.else_masks
    assert "--local-weight" not in advice
    with pytest.raises(OptionError, match="whole images"):
        train(april_gan(weights, tile=112), small, tmp_path / "p.safetensors")


def test_unreadable_images_leave_out_their_mosaics(
    weights: Path, small: Dataset, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small.root, root)
    victim = sorted((root / "tile/test/good").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:900])
    samples = choose_samples(open_dataset(root).samples, "test", True, root).samples
    bad = next(n for n, sample in enumerate(samples) if sample.image == victim)
    other = [n for n in range(len(samples)) if n != bad]
    errors: list[ImageError] = []
    tower = Tower(april_gan(weights), samples, True, on_error=errors.append)
    four = (bad, other[1], other[2], other[3])
    for _ in range(2):
        batch = tower.load([four, (other[1],), (bad,)])
        assert batch is not None
        assert len(batch.whole) == 1
    assert [error.source for error in errors] == [str(victim)]
    assert tower.load([four]) is None
    with pytest.raises(ImageError):
        Tower(april_gan(weights), samples, True).load([four])
