"""Agreement with STFPM's released code, with weights made from seeds."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.parity.trained import Golden, assert_close, batch_of, load, seed, total_norm
from tests.seeded import UNTRAINED

from offnominal.detectors.teacher_student.stfpm import STFPM


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = timm.create_model("resnet18", num_classes=0)
    seed(model, "cnn")
    path = tmp_path_factory.mktemp("seeded") / "resnet18.safetensors"
    save_file(model.state_dict(), path, metadata=UNTRAINED)
    return path


@pytest.mark.slow
def test_agrees_with_the_released_code(shared: Path, tiles: Path, weights: Path) -> None:
    golden = Golden(shared, "stfpm_resnet18")
    detector = STFPM(backbone="resnet18", weights=str(weights), device="cpu")
    detector.make_networks()
    seed(detector.student, "cnn", "student.", lambda name: name.removeprefix("model."))
    test, train = load(tiles, golden["test"], 256), load(tiles, golden["train"], 256)
    for when in ("before", "after"):
        detector.eval()
        allow = 1e-4 if when == "before" else 3e-2
        with torch.no_grad():
            maps = detector.maps(test)
        assert_close(maps[:, ::8, ::8], golden.array(f"{when}/map256_stride8"), allow)
        assert_close(maps.amax((1, 2)), golden[f"{when}/score"], min(allow, 1e-2))
        if when == "after":
            return
        detector.train()
        start = [each.detach().clone() for each in detector.student.parameters()]
        [optimiser] = detector.optimisers()
        steps = golden["steps"]
        for step, (expected, moved) in enumerate(
            zip(steps["loss"], steps["param_delta"], strict=True)
        ):
            total = detector.loss(batch_of(train))["total"]
            assert total.item() == pytest.approx(expected, rel=1e-4 if step == 0 else 3e-3)
            optimiser.zero_grad()
            torch.autograd.backward(total)
            if step == 0:
                grads = [each.grad for each in detector.student.parameters()]
                assert total_norm(grads) == pytest.approx(golden["grad_total_norm"], rel=2e-3)
            optimiser.step()
            now = detector.student.parameters()
            apart = [(a - b).detach() for a, b in zip(now, start, strict=True)]
            assert total_norm(apart) == pytest.approx(moved, rel=3e-3)
