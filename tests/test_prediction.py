"""What a prediction can be turned into."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import supervision
from pycocotools import mask as mask_of
from pycocotools.coco import COCO

from offnominal import coco, predictions_frame
from offnominal.errors import OptionError
from offnominal.paths import is_own
from offnominal.prediction import Prediction
from offnominal.regions import outlines
from offnominal.scoring import Scores

SIZE = (40, 60)


@pytest.fixture
def found() -> Prediction:
    """A ring, a single pixel, and two pixels that touch at a corner."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(y - 18, x - 20)
    heat = np.where((away < 14) & (away > 5), 3.0, 0.1).astype(np.float32)
    heat[18, 30] = 4.0
    heat[38, 58] = heat[2, 50] = heat[3, 51] = 2.5
    image = np.full((*SIZE, 3), 128, np.uint8)
    return Prediction("lot 7/<b>&.png", 2.0, heat, Scores(heat), image, 1.0, 2.0, 0.05)


@pytest.fixture
def passed(found: Prediction) -> Prediction:
    return replace(found, source="good.png", score=0.5, anomaly_map=found.anomaly_map / 10)


def test_plain_values(found: Prediction, passed: Prediction) -> None:
    row = json.loads(json.dumps(found.to_dict()))
    assert row["is_anomalous"] is True
    assert [one["peak"] for one in row["regions"]] == [4.0, 2.5, 2.5]
    unknown = replace(passed, threshold=None, pixel_threshold=None, p_value=None)
    table = predictions_frame(iter([found, passed, unknown]))
    assert table["regions"].tolist() == [3, 0, 0]
    assert table["is_anomalous"].isna().tolist() == [False, False, True]
    assert table[table.is_anomalous]["image"].tolist() == [found.source]
    assert table.loc[0, ["left", "top", "area", "peak"]].tolist()[:2] == [7, 5]
    assert predictions_frame([]).empty


def test_masks_survive_in_coco(found: Prediction, passed: Prediction, tmp_path: Path) -> None:
    file = tmp_path / "regions.json"
    file.write_text(json.dumps(coco(iter([passed, found]))))
    read = COCO(file)
    assert [one["file_name"] for one in read.loadImgs([1, 2])] == [passed.source, found.source]
    assert read.getAnnIds(imgIds=[1]) == []
    for area, one in zip(found.areas(), read.loadAnns(read.getAnnIds(imgIds=[2])), strict=True):
        assert np.array_equal(read.annToMask(one), area.whole_mask(SIZE))
        assert one["bbox"] == list(area.region.box)
        assert (one["area"], one["score"]) == (area.region.area, area.region.peak)


def test_outlines_give_any_mask_again() -> None:
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        mask = rng.random(SIZE) < share
        paths = [one.ravel().astype(float).tolist() for one in outlines(mask)]
        again = mask_of.decode(mask_of.merge(mask_of.frPyObjects(paths, *SIZE)))
        assert np.array_equal(again > 0, mask)
    assert outlines(np.zeros(SIZE, bool)) == []


def test_supervision_takes_them(found: Prediction, passed: Prediction) -> None:
    detections = found.to_supervision()
    assert detections.xyxy[0].tolist() == [7, 5, 34, 32]
    assert detections.confidence.tolist() == [4.0, 2.5, 2.5]
    assert detections.area.tolist() == [one.area for one in found.regions()]
    assert detections["class_name"].tolist() == ["anomaly"] * 3
    drawn = supervision.MaskAnnotator().annotate(found.image.copy(), detections)
    assert (drawn[18, 30] != found.image[18, 30]).any()
    assert len(passed.to_supervision()) == 0
    assert len(found.to_supervision(min_area=2)) == 2


def test_shown(found: Prediction, passed: Prediction, tmp_path: Path) -> None:
    page = found._repr_html_()
    assert "REJECT" in page
    assert "lot 7/&lt;b&gt;&amp;.png" in page
    assert "<b>" not in page
    assert len(page) < 50_000
    assert ">ok<" in passed._repr_html_()
    assert ">no threshold<" in replace(passed, threshold=None)._repr_html_()
    mpl.use("agg")
    from matplotlib import pyplot

    figure = found.plot()
    figure.savefig(tmp_path / "figure.svg")
    assert figure.get_suptitle().startswith("REJECT: score 2, threshold 1\nlot 7/")
    assert not pyplot.get_fignums()
    found.save(tmp_path / "part.png")
    assert is_own(tmp_path / "part.png")
    with pytest.raises(OptionError, match=r"part.gif: pictures are written as PNG or TIFF"):
        found.save(tmp_path / "part.gif")


def test_what_is_missing_is_named(found: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "pandas", "supervision"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=r"plot needs matplotlib.*pip install matplotlib"):
        found.plot()
    with pytest.raises(OptionError, match=r"predictions_frame needs pandas.*pip install pandas"):
        predictions_frame([found])
    with pytest.raises(OptionError, match=r"to_supervision needs supervision.*>=0.31"):
        found.to_supervision()
