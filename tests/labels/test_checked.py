"""`offnominal datasets check` on annotated defects: classes, marks, and what does not fit."""

import json
from pathlib import Path

from tests.cli.conftest import offnominal
from tests.datasets.pictures import image, mask
from tests.labels import parts
from tests.labels.parts import HEIGHT, SCRATCH, WIDTH, bad, flat, write

from offnominal.datasets import open_dataset
from offnominal.datasets.check import check
from offnominal.datasets.report import Labels


def test_annotations_are_counted_and_those_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder = bad(tmp_path, "rust/a.png", "rust/b.png", "hole/c.png", "hole/d.png")
    image(tmp_path, "good/0.png", "good/1.png", size=(HEIGHT, WIDTH))
    mask(tmp_path, "masks/hole/c.png", size=(HEIGHT, WIDTH))
    mask(tmp_path, "masks/hole/d.png", size=(HEIGHT, 2 * WIDTH))
    outline = {"segmentation": [flat(SCRATCH)], "category_id": 1}
    file = write(tmp_path / "coco.json", parts.coco(
        ["a.png", "b.png"], [{}, outline, {"image_id": 1}, {"image_id": 1, "category_id": 5}]
    ))  # fmt: skip
    dataset = open_dataset(good=tmp_path / "good", defects=folder, masks=tmp_path / "masks")
    report = check(dataset, boxes=file)
    images, marks = {"defect": 2, "dent": 2, "scratch": 1}, {"defect": 1, "dent": 2, "scratch": 1}
    assert report.labels == Labels(images, marks, 2, 1, 1, (6, 16, 22))
    what = "annotations that do not fit"
    (finding,) = [one for one in report.findings if one.what == what]
    assert (finding.severity, finding.count) == ("error", 1)
    assert "annotation 3 (b.png): category_id 5 is not known" in finding.examples[0]
    by_folder = check(dataset, boxes=file, classes="by-folder").labels
    assert by_folder is not None
    assert by_folder.images == {"hole": 2, "rust": 2}
    words = ["datasets", "check", "--good", tmp_path / "good", "--defects", folder, "--masks",
             tmp_path / "masks", "--boxes", file]  # fmt: skip
    done = offnominal(*words)
    assert "dent          2      2" in done.stdout, done.stdout
    assert "marked exactly 2, by boxes only 1, not at all 1; 6 to 22 pixels long" in done.stdout
    assert json.loads(offnominal(*words, "--json").stdout)["labels"]["boxed"] == 1
    assert check(dataset).labels is None
