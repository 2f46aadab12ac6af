"""int8 beside float32: what passes, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from offnominal import AnomalyDINO
from offnominal.datasets.synthetic import draw_good
from offnominal.engines.gate import Gate, Limits, compared
from offnominal.engines.int8 import quantised
from offnominal.errors import OptionError


@pytest.mark.slow
def test_int8_is_compared_with_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFNOMINAL_CACHE", str(tmp_path))
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.safetensors"
    )
    options: dict[str, Any] = {
        "backbone": "test_resnet", "weights": str(tmp_path / "w.safetensors"), "resolution": 64,
        "rotations": "none", "mask": "off",
    }  # fmt: skip
    detector = AnomalyDINO(**options)
    images = [draw_good("fabric", 0, index) for index in range(9)]
    detector.fit(images[:3], synthetic=False)
    graph = quantised(detector, images[3:])
    assert graph.facts.precision == "int8"
    bad = [255 - image for image in images[3:5]]
    other = AnomalyDINO(**options, engine="onnxruntime")
    other.use_graph(graph)
    other.fit(images[:3], synthetic=False)
    found = compared(detector, other, images[3:], bad)
    assert found.cosine == pytest.approx(1, abs=0.05)
    assert found.cosine != 1
    assert found.auroc is not None
    assert found.tried == 3
    assert found.detector.threshold != detector.threshold
    assert found.detector.engine_in_force in ("onnxruntime", "openvino")
    with pytest.raises(OptionError, match="give 4 or more"):
        compared(detector, other, images[3:5])


def test_what_loses_is_refused() -> None:
    fine = Gate((99.0, 98.6), (1, 2), 20, 0.985, 0.9, Limits(), None)
    assert not fine.refused
    fine.check()
    for worse, told in [
        (Gate((99.0, 98.5), (1, 2), 20, 0.985, 0.9, Limits(), None), "AUROC falls by 0.5"),
        (Gate(None, (1, 3), 20, 0.985, 0.9, Limits(), None), "2 more good images"),
        (Gate(None, (1, 1), 20, np.nan, 0.9, Limits(), None), "another order"),
    ]:
        with pytest.raises(OptionError, match=told):
            worse.check()
    strict = Gate((99.0, 98.6), (1, 2), 20, 0.985, 0.9, Limits(rank=0.99), None)
    assert len(strict.refused) == 1
    assert len(strict.rows()) == 4
    assert strict.plain()["limits"]["rank"] == 0.99
