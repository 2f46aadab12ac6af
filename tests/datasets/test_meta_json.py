"""The meta.json of zero-shot codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import Sample, open_dataset
from offnominal.errors import DatasetError


def entry(path: str, anomaly: int, mask_path: str = "", specie: str = "good") -> dict[str, Any]:
    return {
        "img_path": path, "mask_path": mask_path, "cls_name": "nut", "specie_name": specie,
        "anomaly": anomaly,
    }  # fmt: skip


def write(home: Path, meta: Any) -> None:
    (home / "meta.json").write_text(json.dumps(meta))


def test_both_splits_and_paths_of_another_machine(tmp_path: Path) -> None:
    image(tmp_path, "nut/a.png", "nut/b.png", "nut/c.png", "nut/Data/Images/Anomaly/d.png")
    mask(tmp_path, "nut/c_mask.png", "nut/Data/Masks/Anomaly/d.png")
    write(
        tmp_path,
        {
            # DAGM's script writes the splits with capitals.
            "Train": {"nut": [entry("nut/a.png", 0)]},
            "test": {
                "nut": [
                    entry("/home/someone/data/set/nut/b.png", 0),
                    entry("nut/c.png", 1, "/home/someone/data/set/nut/c_mask.png", "dent"),
                    entry("nut/Data/Images/Anomaly/d.png", 1, "nut/Data/Masks/Anomaly/d.png", ""),
                ]
            },
        },
    )
    for root in (tmp_path, tmp_path / "meta.json"):
        dataset = open_dataset(root)
        assert dataset.layout == "meta"
        masks = tmp_path / "nut/Data/Masks/Anomaly/d.png"
        assert dataset.samples == (
            Sample(tmp_path / "nut/a.png", 0, None, "good", "nut", "train"),
            Sample(tmp_path / "nut/b.png", 0, None, "good", "nut", "test"),
            Sample(tmp_path / "nut/c.png", 1, tmp_path / "nut/c_mask.png", "dent", "nut", "test"),
            # VisA's masks hold class numbers.
            Sample(
                tmp_path / "nut/Data/Images/Anomaly/d.png", 1, masks, "defect", "nut", "test", 1
            ),
        )
        assert dataset.notes == ("2 paths of another machine: found by their last parts",)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"classes": {}}, "no 'train' and no 'test'"),
        ([1], "no 'train' and no 'test'"),
        ({"test": [1]}, "'test' is not 'train' or 'test' with classes"),
        ({"test": {"nut": [{"img_path": "a.png"}]}}, r"test/nut\[0\]: img_path and anomaly"),
        ({"test": {"nut": [entry("a.png", 0), entry("a.png", 2)]}}, r"test/nut\[1\]: anomaly is 2"),
        ({"test": {"nut": [entry("b.png", 0)]}}, r"test/nut\[0\]: no such file .*b.png"),
        ({"test": {"nut": [entry("/else/b.png", 0)]}}, "no such file /else/b.png"),
        ({"test": {}}, "no images in meta layout"),
        ({"test": {"nut": 5}}, "test/nut is no list"),
        ({"test": {"nut": [entry("a.png", 0, ""), entry("./a.png", 1)]}}, r"a.png is in test/nut"),
        ({"test": {"nut": [entry(7, 0)]}}, r"test/nut\[0\]: img_path is 7"),  # type: ignore[arg-type]
        ({"test": {"nut": [entry("x" * 5000, 0)]}}, r"no such file .*x \.\.\."),
        ({"test": {"nut": [entry(".", 0)]}}, "no such file"),
    ],
)
def test_files_of_another_form(tmp_path: Path, meta: Any, message: str) -> None:
    image(tmp_path, "a.png")
    write(tmp_path, meta)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000, '{"test": {}, "test": {}}'):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(DatasetError, match=r"meta.json: cannot be read .*generate it again"):
            open_dataset(tmp_path)


def test_paths_of_windows(tmp_path: Path) -> None:
    image(tmp_path, "nut/a.png", "nut/b.png")
    entries = [entry("nut\\a.png", 0), entry("D:\\data\\set\\nut\\b.png", 1)]
    (tmp_path / "meta.json").write_text("\ufeff" + json.dumps({"test": {"nut": entries}}))
    assert [s.image.name for s in open_dataset(tmp_path).test("nut")] == ["a.png", "b.png"]
