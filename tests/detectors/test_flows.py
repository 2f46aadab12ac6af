"""The detectors with normalising flows, as a user meets them; agreement is tested elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.flows import save_seeded
from tests.seeded import save_dinov2_vits14
from torch import Tensor, nn

from offnominal import load
from offnominal.detectors.flow.cflow import CFlow
from offnominal.detectors.flow.coupling import Coupling, check_flows
from offnominal.detectors.flow.differnet import DifferNet, Step
from offnominal.detectors.flow.fastflow import FastFlow, LevelFlow
from offnominal.detectors.flow.fibres import decoder
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import BackboneError, OptionError, WeightsError

METHODS: dict[type[TrainedFeatureDetector], dict[str, Any]] = {
    FastFlow: {"couplings": 2},
    CFlow: {"couplings": 2, "fibres": 32},
    DifferNet: {"couplings": 2, "rotations": 2, "width": 0.01},
}


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def grey(seed: int, spread: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(120, spread, (64, 64, 3))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a network of five levels with 0.4 million values."""
    return str(save_seeded("test_resnet", tmp_path_factory.mktemp("seeded")))


@pytest.mark.parametrize("kind", METHODS)
def test_it_learns_and_is_the_same_from_a_file(
    kind: type[TrainedFeatureDetector], small: str, tmp_path: Path
) -> None:
    told = {"backbone": "test_resnet", "weights": small, "resolution": 64, "device": "cpu"}
    rest = {"steps": 10, "batch": 6, "lr_scale": 10, "false_reject": 0.2}
    detector = kind(**told, **METHODS[kind], **rest)
    detector.fit([grey(number, 10) for number in range(12)], synthetic=False)
    first, last = (np.mean([row["total"] for row in detector.losses[at]])
                   for at in (slice(3), slice(-3, None)))  # fmt: skip
    assert last < first
    both = grey(12, 10), grey(13, 80)
    before = detector.predict(both)
    assert before[1].score > before[0].score
    detector.save(tmp_path / "part.offn")
    after = load(tmp_path / "part.offn", device="cpu").predict(both)
    for one, other in zip(before, after, strict=True):
        assert (one.score, one.threshold) == (other.score, other.threshold)
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
    assert before[0].patch_scores.size == (1 if kind is DifferNet else 64 * 64)


def log_volume(step: nn.Module, x: Tensor, *condition: Tensor) -> Tensor:
    """Logarithm of the determinant of the Jacobian of what a step makes of one x, by autograd."""
    jacobian = torch.autograd.functional.jacobian(lambda one: step(one, *condition)[0], x)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet


def test_log_determinants_are_those_of_the_jacobian() -> None:
    torch.manual_seed(0)
    for clamping in ("plain", "scaled"):
        subnet = nn.Conv2d(3, 4, 3, padding=1)
        maps = Coupling(5, subnet, 2.0, clamping, "permutation").double()
        nn.init.normal_(maps.global_scale, 8.0)
        nn.init.normal_(subnet.weight, 0.0, 3.0)
        x = torch.randn(1, 5, 3, 4, dtype=torch.float64)
        torch.testing.assert_close(maps(x)[1][0], log_volume(maps, x))
    vectors = Coupling(5, nn.Linear(3 + 2, 4), 1.9, "plain", "rotation").double()
    x, place = torch.randn(1, 5, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    told = log_volume(vectors, x, place)
    torch.testing.assert_close(vectors(x, place)[1][0], told, rtol=1e-5, atol=1e-6)
    step = Step(6, 8).double()
    x = torch.randn(1, 6, dtype=torch.float64)
    torch.testing.assert_close(step(x)[1][0], log_volume(step, x))


def test_full_sizes() -> None:
    """As many trained values as the published networks have."""
    with torch.device("meta"):
        pyramid = [(64, 64, 64), (128, 32, 32), (256, 16, 16)]
        small = [LevelFlow(one, 8, 1.0, "3", "plain", norm=True) for one in pyramid]
        wide = [LevelFlow((4 * c, h, w), 8, 1.0, "3-1", "plain", norm=True) for c, h, w in pyramid]
        steps = [Step(768, 2048) for _ in range(8)]
        decoders = [decoder(dims, 8, 2.0, 128, "plain") for dims in (512, 1024, 2048)]
    assert sum(map(parameters, small)) == 5_574_912
    assert sum(map(parameters, wide)) == 45_007_872
    millions = [round(parameters(one) / 1e6, 1) for one in decoders]
    assert millions == [5.5, 17.1, 59.0]
    assert sum(map(parameters, steps)) == 172_077_056


def test_fastflow_on_a_transformer(tmp_path: Path) -> None:
    weights = save_dinov2_vits14(tmp_path)
    detector = FastFlow(backbone="dinov2_vits14", weights=str(weights), resolution=56, device="cpu")
    detector.make_networks()
    assert detector.load_network().layers == (7,)
    [level] = detector.flows
    assert isinstance(level.norm, nn.Identity), "the network has its own"
    assert [one.subnet[0].kernel_size[0] for one in level.flow.steps] == [3, 1] * 10
    assert level.flow.steps[0].subnet[0].out_channels == int(0.16 * 192)
    assert detector.compare(torch.zeros(1, 3, 56, 56)).patches.shape == (56, 56)


def test_reflecting_is_another_network(small: str, mobilenet: Path) -> None:
    plain, other = (
        CFlow(backbone="test_resnet", weights=small, padding=padding, resolution=64, device="cpu")
        for padding in ("zeros", "reflect")
    )
    x = torch.ones(1, 3, 64, 64)
    for zeros, reflected in zip(plain.frozen(x), other.frozen(x), strict=True):
        assert zeros.std((2, 3)).max() > 1e-3, "of an even image only the rim differs"
        assert reflected.std((2, 3)).max() < 1e-4
    assert plain.load_network().digest != other.load_network().digest
    with pytest.raises(BackboneError, match="could be reflected"):  # it pads by itself
        CFlow(weights=str(mobilenet), padding="reflect").load_network()


def test_a_broken_order_is_refused() -> None:
    step = Step(6, 8)
    check_flows(step)
    step.order[0] = step.order[1]
    with pytest.raises(ValueError, match="no order of the channels"):
        check_flows(step)


def test_options_are_checked_at_once() -> None:
    for kind, options, message in (
        (FastFlow, {"couplings": 0}, "--couplings 0"),
        (FastFlow, {"width": 0}, "--width 0"),
        (FastFlow, {"kernels": "5"}, "kernels '5'"),
        (CFlow, {"clamping": "soft"}, "clamping 'soft'"),
        (CFlow, {"fibres": 0}, "--fibres 0"),
        (DifferNet, {"rotations": 0}, "--rotations 0"),
    ):
        with pytest.raises(OptionError, match=message):
            kind(**options)
    with pytest.raises(WeightsError, match="alexnet-owt"):
        DifferNet(backbone="alexnet").load_network()
