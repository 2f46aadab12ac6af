"""Tables, labels and masks of data sets gone wrong: read as they are, or refused in a line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.datasets.pictures import image, mask
from tests.fuzz.mutate import attack, json_mutations, mutations

from offnominal.datasets import Sample, open_dataset
from offnominal.datasets.masks import inspect_mask

ROWS = "image;label;mask;split\r\nin/0.png;0;;train\r\nin/1.png;0;;\r\nin/2.png;1;in/m.png;test\r\n"
LINES = [{"image": f"in/{n}.png", "label": n // 2, "mask": "in/m.png"} for n in range(3)]
ENTRIES = [
    {"img_path": f"in/{n}.png", "anomaly": n // 2, "mask_path": "in/m.png"} for n in range(3)
]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("manifest.csv", ("sep=;\r\n" + ROWS).encode()),
        ("manifest.csv", ROWS.replace(";", "\t").encode("utf-16")),
        ("manifest.jsonl", "\n".join(map(json.dumps, LINES)).encode()),
        (
            "meta.json",
            json.dumps({"train": {"a": ENTRIES[:1]}, "test": {"a": ENTRIES[1:]}}).encode(),
        ),
    ],
)
def test_tables(tmp_path: Path, name: str, data: bytes) -> None:
    image(tmp_path, *(f"in/{n}.png" for n in range(3)))
    mask(tmp_path, "in/m.png")
    (tmp_path / name).write_bytes(data)
    layout = "meta" if name == "meta.json" else "manifest"
    ways = (mutations,) if name.endswith("csv") else (mutations, json_mutations)
    attack(tmp_path / name, lambda: open_dataset(tmp_path, layout), *ways)


def test_tables_of_visa(tmp_path: Path) -> None:
    home = tmp_path / "candle/Data"
    image(home / "Images", "Normal/0.JPG", "Normal/1.JPG", "Anomaly/0.JPG")
    kinds = (("Normal/0", "train"), ("Normal/1", "test"), ("Anomaly/0", "test"))
    rows = [f"candle,{split},candle/Data/Images/{name}.JPG" for name, split in kinds]
    table = tmp_path / "split_csv/1cls.csv"
    table.parent.mkdir()
    table.write_text("\n".join(["object,split,image", *rows]))
    attack(table, lambda: open_dataset(tmp_path, "visa"), mutations)


def test_labels_of_frames(tmp_path: Path) -> None:
    image(tmp_path, "training/a/0.jpg", *(f"testing/b/{n}.jpg" for n in range(3)))
    file = tmp_path / "testing/test_frame_mask/b.npy"
    file.parent.mkdir()
    np.save(file, np.array([0, 1, 0]))
    attack(file, lambda: open_dataset(tmp_path, "video"), mutations)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses or passes over
@pytest.mark.parametrize("suffix", [".png", ".gif", ".jpg", ".tif"])
def test_masks(tmp_path: Path, suffix: str) -> None:
    image(tmp_path, "part.png")
    turned = Image.Exif()
    turned[0x0112] = 3
    mark = np.zeros((16, 24, 3), np.uint8)
    mark[4:8, 6:12] = 255
    file = tmp_path / f"mask{suffix}"
    Image.fromarray(mark).save(file, **({} if suffix == ".gif" else {"exif": turned}))
    sample = Sample(tmp_path / "part.png", 1, file, "dent", "nut", "test")
    attack(file, lambda: inspect_mask(sample, (16, 24)), mutations)
