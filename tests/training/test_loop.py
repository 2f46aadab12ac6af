"""Training on real images with a small tower."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.material import contents, write_half

from offnominal.backbones.cache import FeatureCache
from offnominal.backbones.weights import digest as digest_of
from offnominal.datasets import open_dataset
from offnominal.datasets.dataset import Dataset
from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.detectors.language.anomalyclip import AnomalyCLIP
from offnominal.detectors.language.coop import CoOp
from offnominal.detectors.language.training.learners import TRAINABLE, LanguageRecipe, PromptLearner
from offnominal.detectors.language.training.samples import choose_samples, mask_of, truth_at
from offnominal.detectors.language.training.tower import Tower
from offnominal.errors import DatasetError, ImageError, ModelFileError, OptionError
from offnominal.language.learned import LearnedPrompts
from offnominal.language.learnedfile import read_learned
from offnominal.metrics.image import image_metrics
from offnominal.train import Outcome, train
from offnominal.training.checkpoint import Files, mean_losses, read_losses

# Small: 12 images of 112 x 112 px.
QUICK = LanguageRecipe(epochs=2, batch=5)
SHALLOW = {"depth": 3}


def anomalyclip(weights: Path, **options: Any) -> AnomalyCLIP:
    chosen = {"resolution": 112, "value_blocks": 2} | options
    return AnomalyCLIP(weights=str(weights), device="cpu", **chosen)


def every(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    return [(number,) for number in range(len(samples))]


def trained(weights: Path, data: Dataset, path: Path, **options: Any) -> Outcome:
    recipe = options.pop("recipe", QUICK)
    return train(anomalyclip(weights), data, path, recipe, settings=SHALLOW, **options)


@pytest.mark.slow
def test_training_finds_defects_on_other_images(weights: Path, tiles: Path, tmp_path: Path) -> None:
    """Prompts learned on one half lower the loss, and raise the AUROC on the other half."""
    halves = [
        open_dataset(write_half(tiles, tmp_path / str(half), half, each=16)) for half in (0, 1)
    ]
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    cache = FeatureCache(tmp_path / "cache", 10**9)
    options: dict[str, Any] = {"resolution": 224}
    for path, epochs in ((before, 0), (after, 5)):
        detector = anomalyclip(weights, **options)
        recipe = LanguageRecipe(epochs=epochs)
        outcome = train(detector, halves[0], path, recipe, settings=SHALLOW, cache=cache)
    means = [mean["total"] for mean in mean_losses(outcome.history)]
    assert means[-1] < 0.85 * means[0]

    def measure(prompts: Path) -> tuple[float, float]:
        test = halves[1].test("tile")
        detector = anomalyclip(weights, prompts=prompts, aggregate="max", **options).fit([])
        found = detector.predict([sample.image for sample in test])
        truth = [sample_mask(s, p.image.shape[:2]) for s, p in zip(test, found, strict=True)]
        pixels = np.concatenate([p.anomaly_map.ravel()[::7] for p in found])
        marked = np.concatenate([mask.ravel()[::7] for mask in truth if mask is not None])
        images = image_metrics([s.label for s in test], [p.score for p in found])
        return images["image_auroc"], image_metrics(marked, pixels)["image_auroc"]

    (image_before, pixel_before), (image_after, pixel_after) = measure(before), measure(after)
    assert pixel_after > pixel_before + 0.15
    assert pixel_after > 0.7
    assert image_after > image_before


def test_only_prompts_are_trained(weights: Path, small: Dataset, tmp_path: Path) -> None:
    detector = anomalyclip(weights)
    digest = detector.clip.digest
    outcome = train(detector, small, tmp_path / "p.safetensors", QUICK, settings=SHALLOW)
    assert digest_of(detector.clip.visual) == digest
    assert detector.prompts is None
    start = train(
        anomalyclip(weights),
        small,
        tmp_path / "q.safetensors",
        LanguageRecipe(epochs=0),
        settings=SHALLOW,
    )
    drawn, _ = read_learned(start.files.learned, LearnedPrompts)
    learned, about = read_learned(outcome.files.learned, LearnedPrompts)
    for (name, a), (_, b) in zip(drawn.named_parameters(), learned.named_parameters(), strict=True):
        assert not torch.equal(a, b), name
    assert about.backbone["digest"] == digest
    assert about.training["recipe"]["epochs"] == 2
    assert about.training["data"] | {"good": 4, "defective": 8} == about.training["data"]


def test_a_step_is_adams(weights: Path, small: Dataset, tmp_path: Path) -> None:
    """One step on all images: each number moves against its gradient's sign by the rate."""
    detector = anomalyclip(weights)
    samples = choose_samples(small.samples, "test", True, small.root).samples
    batch = Tower(detector, samples, masks=True).load(every(samples))
    assert batch is not None
    assert batch.truth is not None
    files = []
    for epochs in (0, 1):
        path = tmp_path / f"{epochs}.safetensors"
        recipe = LanguageRecipe(epochs=epochs, batch=100)
        files.append(train(detector, small, path, recipe, settings=SHALLOW).files.learned)
    drawn, _ = read_learned(files[0], LearnedPrompts)
    first = torch.Generator().manual_seed(111)
    learner = PromptLearner(detector, LanguageRecipe(), ["tile"], SHALLOW, first)
    learner.learned.load_state_dict(drawn.state_dict())
    drawn = learner.learned
    parts = learner.loss(batch)
    torch.autograd.backward(parts["total"])
    moved, _ = read_learned(files[1], LearnedPrompts)
    for (name, a), (_, b) in zip(drawn.named_parameters(), moved.named_parameters(), strict=True):
        assert a.grad is not None
        # Adam's first step (Kingma and Ba, 2015, algorithm 1), both moments corrected for bias.
        wanted = a - 1e-3 * a.grad / (a.grad.abs() + 1e-8)
        large = a.grad.abs() > 1e-5
        assert large.float().mean() > 0.9, name
        torch.testing.assert_close(b[large], wanted[large], atol=2e-6, rtol=1e-5)
    [row] = read_losses(Files(files[1]).losses)
    assert row["total"] == pytest.approx(parts["total"].item(), rel=1e-5)


@pytest.mark.slow
def test_the_cache_changes_nothing_but_the_time(
    weights: Path, small: Dataset, tmp_path: Path
) -> None:
    detector = anomalyclip(weights)
    samples = choose_samples(small.samples, "test", True, small.root).samples
    cache = FeatureCache(tmp_path / "cache", 10**8)
    first, again = Tower(detector, samples, True, cache), Tower(detector, samples, True, cache)
    plain = Tower(detector, samples, True)
    order = [(3,), (1,), (7,)]
    for tower in (first, first, again, plain):
        batch = tower.load(order)
        alone = plain.load([(7,)])
        assert batch is not None
        assert alone is not None
        assert torch.equal(batch.whole[2], alone.whole[0]), "a batch's images are not mixed"
        assert torch.equal(batch.levels[0][2], alone.levels[0][0])
    assert (first.computed, first.from_cache) == (3, 3)
    assert (again.computed, again.from_cache) == (0, 3)
    # Another reading of the same images is another entry.
    other = Tower(anomalyclip(weights, value_blocks=1), samples, True, cache)
    other.load(order)
    assert other.computed == 3
    one = trained(weights, small, tmp_path / "one.safetensors", cache=cache)
    two = trained(weights, small, tmp_path / "two.safetensors")
    assert contents(one.files) == contents(two.files)


def test_a_full_cache_only_loses_the_gain(weights: Path, small: Dataset, tmp_path: Path) -> None:
    samples = choose_samples(small.samples, "test", True, small.root).samples
    tiny = FeatureCache(tmp_path / "cache", 40_000)
    tower = Tower(anomalyclip(weights), samples, True, tiny)
    for _ in range(2):
        tower.load(every(samples))
    assert 0 < tower.from_cache < len(samples)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.npz")) < 60_000


@pytest.fixture(scope="module")
def whole(weights: Path, small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained(weights, small, tmp_path_factory.mktemp("whole") / "p.safetensors")


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_interrupted_and_resumed_is_uninterrupted(
    weights: Path, small: Dataset, whole: Outcome, tmp_path: Path, stop: int
) -> None:
    """Stopped after any step, in an epoch or between two: the files end the same, bit for bit."""
    path = tmp_path / "p.safetensors"
    steps = 0

    def break_off(stage: str, done: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(weights, small, path, progress=break_off)
    torch.manual_seed(stop)  # what others draw meanwhile makes no difference
    rest = trained(weights, small, path)
    assert rest.began_at == divmod(stop, 3)
    assert contents(rest.files) == contents(whole.files)
    assert rest.history == whole.history


@pytest.mark.slow
def test_what_lies_there_after_an_epoch_is_enough(
    weights: Path, small: Dataset, whole: Outcome, tmp_path: Path
) -> None:
    """After a power cut there is what was written last, and no chance to write more."""
    copy = tmp_path / "copy"
    copy.mkdir()

    def cut(line: str) -> None:
        if line.startswith("epoch 1 of 2"):
            for file in tmp_path.glob("p.*"):
                shutil.copy(file, copy)

    trained(weights, small, tmp_path / "p.safetensors", tell=cut)
    learned, about = read_learned(copy / "p.safetensors", LearnedPrompts)
    assert about.training["recipe"]["epochs"] == 1
    rest = trained(weights, small, copy / "p.safetensors")
    assert rest.began_at == (1, 0)
    assert contents(rest.files) == contents(whole.files)
    assert not torch.equal(learned.get_parameter("normal"), _normal(rest))


def _normal(outcome: Outcome) -> torch.Tensor:
    return read_learned(outcome.files.learned, LearnedPrompts)[0].get_parameter("normal")


@pytest.mark.slow
def test_a_finished_training_goes_on(weights: Path, small: Dataset, tmp_path: Path) -> None:
    whole = trained(
        weights, small, tmp_path / "a.safetensors", recipe=LanguageRecipe(epochs=3, batch=5)
    )
    first = trained(
        weights, small, tmp_path / "b.safetensors", recipe=LanguageRecipe(epochs=1, batch=5)
    )
    stamp = first.files.learned.read_bytes()
    same = trained(
        weights, small, tmp_path / "b.safetensors", recipe=LanguageRecipe(epochs=1, batch=5)
    )
    assert same.files.learned.read_bytes() == stamp
    more = trained(
        weights, small, tmp_path / "b.safetensors", recipe=LanguageRecipe(epochs=3, batch=5)
    )
    assert more.began_at == (1, 0)
    assert contents(more.files)[:2] == contents(whole.files)[:2]
    with pytest.raises(OptionError, match="trained for 3 already"):
        trained(
            weights, small, tmp_path / "b.safetensors", recipe=LanguageRecipe(epochs=2, batch=5)
        )


@pytest.mark.slow
def test_files_of_another_training_are_safe(weights: Path, small: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    made = trained(weights, small, path, recipe=LanguageRecipe(epochs=1, batch=5))
    before = contents(made.files)
    with pytest.raises(OptionError, match=r"whose lr is 0\.001, not 0\.01.*--overwrite"):
        trained(weights, small, path, recipe=LanguageRecipe(epochs=1, batch=5, lr=0.01))
    with pytest.raises(OptionError, match="whose value_blocks is 2, not 1"):
        train(
            anomalyclip(weights, value_blocks=1),
            small,
            path,
            LanguageRecipe(1, 5),
            settings=SHALLOW,
        )
    assert contents(made.files) == before
    made.files.state.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="delete it, or give --overwrite"):
        trained(weights, small, path)
    made.files.state.unlink()
    with pytest.raises(OptionError, match="does not; name another"):
        trained(weights, small, path)
    trained(weights, small, path, recipe=LanguageRecipe(epochs=1, batch=5), overwrite=True)
    assert contents(made.files) == before


def test_unreadable_images_are_left_out(weights: Path, small: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(small.root, root)
    victim = sorted((root / "tile/test/blowhole").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:900])
    errors: list[ImageError] = []
    data = open_dataset(root)
    outcome = trained(weights, data, tmp_path / "p.safetensors", on_error=errors.append)
    assert [error.source for error in errors] == [str(victim)], "told once, in two epochs"
    assert len(outcome.history) == 2 * 3
    with pytest.raises(ImageError):
        trained(weights, data, tmp_path / "q.safetensors")


def test_what_cannot_be_trained_on(small: Dataset, weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(small.root, root)
    shutil.rmtree(root / "tile/ground_truth")
    bare = open_dataset(root)
    with pytest.raises(DatasetError, match=r"none of the 8 defective.*--local-weight 0"):
        trained(weights, bare, tmp_path / "p.safetensors")
    # Images alone can still be told apart.
    outcome = trained(
        weights, bare, tmp_path / "p.safetensors", recipe=LanguageRecipe(epochs=1, local_weight=0)
    )
    for row in outcome.history:
        assert row["total"] == row["image"]
        assert row["focal"] == row["dice_abnormal"] == row["dice_normal"] == 0
    with pytest.raises(DatasetError, match=r"the train split has no defective.*--split"):
        trained(weights, small, tmp_path / "q.safetensors", split="train")
    shutil.copytree(small.root / "tile/ground_truth", root / "tile/ground_truth")
    sorted((root / "tile/ground_truth/break").iterdir())[0].unlink()
    told: list[str] = []
    recipe = LanguageRecipe(epochs=0)
    trained(
        weights, open_dataset(root), tmp_path / "r.safetensors", recipe=recipe, tell=told.append
    )
    assert any("1 defective images without a mask" in line for line in told)
    shutil.rmtree(root / "tile/test/good")
    shutil.rmtree(root / "tile/train")
    (root / "tile/train/good").mkdir(parents=True)
    bad = [s for s in small.samples if s.label == 1]
    with pytest.raises(DatasetError, match="no good image"):
        choose_samples(bad, "all", True, root)
    good = [s for s in small.samples if s.label == 0]
    with pytest.raises(DatasetError, match=r"there is no defective image.*name a data set"):
        choose_samples(good, "all", True, root)
    for wrong in (tmp_path / "none" / "p.safetensors", tmp_path / "p.pth"):
        with pytest.raises(OptionError, match=r"-o .*safetensors"):
            trained(weights, small, wrong)
    with pytest.raises(OptionError, match="whole images"):
        train(anomalyclip(weights, resize="short"), small, tmp_path / "x.safetensors")
    with pytest.raises(OptionError, match=r"--depth 9: .* has 3 blocks"):
        train(anomalyclip(weights), small, tmp_path / "x.safetensors")


def test_a_loss_that_runs_away_is_told(weights: Path, small: Dataset, tmp_path: Path) -> None:
    recipe = LanguageRecipe(epochs=3, batch=5, lr=1e30)
    with pytest.raises(OptionError, match=r"--lr 1e\+30: the loss is no longer finite"):
        trained(weights, small, tmp_path / "p.safetensors", recipe=recipe)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": -1}, "--epochs -1"),
        ({"batch": 0}, "--batch 0"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": math.nan}, "--lr"),
        ({"local_weight": -1.0}, "--local-weight"),
        ({"mosaic": 1.5}, r"--mosaic 1\.5"),
    ],
)
def test_recipes_are_checked(settings: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        LanguageRecipe(**settings)


def test_truth_is_resized_as_the_released_code_does(small: Dataset) -> None:
    sample = next(s for s in small.samples if s.label == 1)
    with Image.open(sample.image) as picture:
        shape = (picture.height, picture.width)
    assert sample.mask is not None
    with Image.open(sample.mask) as picture:
        stored = np.asarray(picture.convert("L")) >= sample.mask_threshold
    found = truth_at(mask_of(sample, shape), 96)
    wanted = Image.fromarray((stored * 255).astype(np.uint8)).resize((96, 96), 2)
    np.testing.assert_array_equal(found, np.asarray(wanted) / 255 > 0.5)
    assert abs(found.mean() - stored.mean()) < 0.02
    good = next(s for s in small.samples if s.label == 0)
    assert not truth_at(mask_of(good, shape), 96).any()


@pytest.mark.slow
def test_coop_trains_through_the_same_loop(weights: Path, small: Dataset, tmp_path: Path) -> None:
    papers = TRAINABLE["coop"].recipe
    assert papers.rate(0) == 1e-5
    assert papers.rate(25) == pytest.approx(0.001)
    assert 0 < papers.rate(49) < 2e-6
    recipe = LanguageRecipe(epochs=8, batch=4, lr=0.05, seed=1, local_weight=0.0, optimiser="sgd")
    settings: dict[str, Any] = {"length": 4, "position": "middle", "specific": True}
    settings["start_from"] = "a photo of a"
    path = tmp_path / "coop.safetensors"
    options: dict[str, Any] = {"weights": str(weights), "resolution": 112, "device": "cpu"}
    outcome = train(
        CoOp(**options),
        small,
        path,
        recipe,
        settings=settings,
        class_names={"tile": "magnetic tile"},
    )
    means = [mean["image"] for mean in mean_losses(outcome.history)]
    assert means[-1] < means[0]
    about = outcome.about
    assert about.learner["position"] == "middle"
    assert about.training["data"]["class_names"] == {"tile": "magnetic tile"}
    files = [sample.image for sample in small.test("tile")]
    scores = {
        name: [
            p.score for p in CoOp(prompts=path, class_name=name, **options).fit([]).stream(files)
        ]
        for name in ("magnetic tile", "bottle")
    }
    assert scores["magnetic tile"] != scores["bottle"], "the name is part of the prompt"
    with pytest.raises(ModelFileError, match="prompts of coop"):
        anomalyclip(weights, prompts=path).fit([])
    # Under a schedule the number of epochs is part of the training.
    longer = LanguageRecipe(epochs=9, batch=4, lr=0.05, seed=1, local_weight=0.0, optimiser="sgd")
    with pytest.raises(OptionError, match="whose epochs is 8, not 9"):
        train(CoOp(**options), small, path, longer, settings=settings)


def test_losses_are_json_lines(weights: Path, small: Dataset, tmp_path: Path) -> None:
    outcome = trained(weights, small, tmp_path / "p.safetensors")
    lines = [json.loads(line) for line in outcome.files.losses.read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [
        (epoch, step) for epoch in (1, 2) for step in (1, 2, 3)
    ]
    for line in lines:
        local = line["focal"] + line["dice_abnormal"] + line["dice_normal"]
        assert line["total"] == pytest.approx(line["image"] + 4 * local, rel=1e-5)
    page = outcome.files.page.read_text()
    assert "<svg" in page
    assert "Over 2 epochs the loss fell" in page
    assert "Learning rate</dt><dd>0.001" in page
    assert not any(word in page.replace("http://www.w3.org/", "") for word in ("://", "src="))
