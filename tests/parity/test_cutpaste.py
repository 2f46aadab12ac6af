"""Agreement with a released code of CutPaste on real images, with weights from seeds."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.parity.trained import Golden, assert_close, load, seed, total_norm

from offnominal.detectors.one_class.cutpaste import CutPaste
from offnominal.detectors.one_class.density import kernel_density, mahalanobis, shrunk_gaussian


@pytest.mark.slow
def test_agrees_with_the_released_code(shared: Path, tiles: Path) -> None:
    golden = Golden(shared, "cutpaste_resnet18")
    detector = CutPaste(backbone="resnet18", device="cpu")
    detector.make_networks()
    encoder, head = detector.encoder, detector._head
    seed(encoder, "cnn")
    names = {str(place): f"head.{place}" for place in range(6)} | {"6": "out"}
    seed(head, "linear", "", lambda name: names[name[0]] + name[1:])
    known, test = load(tiles, golden["train"], 128), load(tiles, golden["test"], 128)

    detector.eval()
    with torch.no_grad():
        assert_close(encoder(test)[:, ::4], golden.array("embedding"))
        assert_close(head(encoder(test)), golden.array("logits"))
        [vectors, _], [good, _] = detector.embed(test), detector.embed(known)
    assert_close(mahalanobis(vectors, *shrunk_gaussian(good)), golden["score"])
    assert_close(kernel_density(vectors, good), golden["score_kde"])

    detector.train()
    batch = torch.cat([known[:2], test[1:], test[:2]])
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    trained = list(detector.parameters())
    start = [each.detach().clone() for each in trained]
    [optimiser] = detector.optimisers()
    for step, wanted in enumerate(golden["steps"]):
        loss = F.cross_entropy(head(encoder(batch)), classes)
        # After a step of such gradients rounding counts: it is 1.0100 here, 1.0155 with other
        # kernels and 1.0143 in 64 bits.
        assert loss.item() == pytest.approx(wanted["loss"], rel=1e-2 if step else 1e-4)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        if not step:
            norm = total_norm([each.grad for each in trained])
            assert norm == pytest.approx(golden["grad_total_norm"], rel=2e-3)
        optimiser.step()
        apart = [(now - then).detach() for now, then in zip(trained, start, strict=True)]
        assert total_norm(apart) == pytest.approx(wanted["param_delta"], rel=3e-3)
