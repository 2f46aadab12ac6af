"""Agreement with SuperSimpleNet's released code on real images, with weights from seeds."""

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.parity.trained import Golden, assert_close, batch_of, load, seed, total_norm
from tests.seeded import UNTRAINED
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torchvision.transforms.functional import gaussian_blur

from offnominal.detectors.supervised.grids import finer
from offnominal.detectors.supervised.separation import twice
from offnominal.detectors.supervised.supersimplenet import SuperSimpleNet
from offnominal.scoring import anomaly_map

GRID = (32, 32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> SuperSimpleNet:
    model = timm.create_model("resnet18", num_classes=0)
    seed(model, "cnn")
    path = tmp_path_factory.mktemp("seeded") / "resnet18.safetensors"
    save_file(model.state_dict(), path, metadata=UNTRAINED)
    return SuperSimpleNet(backbone="resnet18", weights=str(path), resolution=128, device="cpu")


@torch.inference_mode()
def check_scores(detector: SuperSimpleNet, pixels: Tensor, golden: Golden, when: str) -> None:
    allow = 1e-4 if when == "before" else 2e-4
    found, logits = detector.eval().judge(detector.adapted(detector.frozen(pixels)))
    assert_close(logits, golden[f"{when}/score_logit"], allow)
    maps = F.interpolate(found[:, None], size=(128, 128), mode="bilinear")
    theirs = gaussian_blur(maps, [25, 25], [4.0, 4.0])[:, 0]
    assert_close(theirs[:, ::4, ::4], golden.array(f"{when}/map_stride4"), allow)
    # Ours has another border, and a Gaussian that is cut off later.
    ours = anomaly_map(found[0].numpy(), (128, 128), detector.smoothing)
    assert_close(ours[16:-16, 16:-16], theirs[0, 16:-16, 16:-16].numpy(), 5e-3)


def labelled(tiles: Path, golden: Golden) -> dict[str, Any]:
    """Labels and targets of the training batch."""
    name = Path(golden["train"][1].replace("test/", "ground_truth/"))
    mask = cv2.imread(str(tiles / name.with_name(f"{name.stem}_mask.png")), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    targets = np.zeros((2, 128, 128), np.uint8)
    targets[1] = cv2.resize(mask, (128, 128), interpolation=cv2.INTER_NEAREST) > 127
    return {"labels": torch.tensor([0, 1]), "targets": torch.from_numpy(targets)}


@pytest.mark.parametrize(
    "regime", [pytest.param("unsupervised", marks=pytest.mark.slow), "supervised"]
)
@pytest.mark.slow
def test_agrees_with_the_released_code(
    regime: str, detector: SuperSimpleNet, shared: Path, tiles: Path
) -> None:
    golden = Golden(shared, f"supersimplenet_resnet18_{regime}")
    test, train = (load(tiles, golden[part], 128) for part in ("test", "train"))
    detector.labels_ = {"kinds": ["defect"], "defects": []} if regime == "supervised" else None
    detector.make_networks()
    names = {"adaptor": "feature_adaptor.projection", "mapper": "discriminator.seg"}
    names |= {"summary": "discriminator.dec_head", "scorer": "discriminator.fc_score"}
    for part, name in names.items():
        seed(getattr(detector, part), "linear", f"{name}.")
    features = torch.cat([finer(each, GRID) for each in detector.frozen(test[:1])], dim=1)
    assert_close(features[0, ::24, ::4, ::4], golden.array("features_first_image"))
    check_scores(detector, test, golden, "before")

    batch = batch_of(train)
    if regime == "supervised":
        batch = batch._replace(**labelled(tiles, golden))
    truth = twice(batch, GRID, torch.device("cpu"))
    blotches = torch.zeros(4, *GRID, dtype=torch.bool)
    blotches[0, 4:10, 6:20] = blotches[2, 10:18, 2:9] = blotches[3, 0:5, 20:30] = True
    noisy = blotches & ~truth.defective
    assert (noisy | truth.defective).sum((1, 2)).tolist() == golden["mask_pixels"]

    detector.train()
    trained = [each for part in names for each in getattr(detector, part).parameters()]
    start = [each.detach().clone() for each in trained]
    [optimiser] = detector.optimisers()
    rng = np.random.default_rng(zlib.crc32(b"supersimplenet_noise"))
    levels = detector.frozen(train)
    for step, told in enumerate(golden["steps"]):
        drawn = (0.015 * rng.standard_normal((4, 384, *GRID))).astype(np.float32)
        noise = torch.from_numpy(drawn).permute(0, 2, 3, 1)[noisy]
        parts = detector.loss_with(detector.adapted(levels), truth, noisy, noise)
        theirs = [told[name] for name in ("total", "true", "fake", "focal_map", "focal_score")]
        allow = 2e-4 if step else 1e-4
        assert_close([part.item() for part in parts.values()], theirs, allow)
        optimiser.zero_grad()
        torch.autograd.backward(parts["total"])
        norm = total_norm([each.grad for each in trained])
        if not step:
            assert norm == pytest.approx(golden["grad_total_norm"], rel=1e-4)
        if detector.schedule.clip:
            assert norm == pytest.approx(told["clip_norm"], rel=2e-4)
            clip_grad_norm_(trained, detector.schedule.clip)
        else:
            assert told["clip_norm"] is None
        optimiser.step()
        moved = [(now - then).detach() for now, then in zip(trained, start, strict=True)]
        assert total_norm(moved) == pytest.approx(told["param_delta"], rel=2e-4)
    check_scores(detector, test, golden, "after")
