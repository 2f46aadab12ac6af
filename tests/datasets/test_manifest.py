"""Manifests: tables of images as CSV and JSON lines."""

import json
from pathlib import Path

import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import Sample, open_dataset
from offnominal.errors import DatasetError, OptionError

CSV = """image,label,mask,defect,category,split
in/0.png,0,,,nut,train
in/1.png,good,,,nut,test
in/2.png,1,truth/2.png,dent,nut,
in/3.png,NG,,,bolt,test
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    image(tmp_path, *(f"in/{n}.png" for n in range(4)))
    mask(tmp_path, "truth/2.png")
    return tmp_path


def expected(home: Path) -> tuple[Sample, ...]:
    return (
        Sample(home / "in/0.png", 0, None, "good", "nut", "train"),
        Sample(home / "in/1.png", 0, None, "good", "nut", "test"),
        Sample(home / "in/2.png", 1, home / "truth/2.png", "dent", "nut", "test"),
        Sample(home / "in/3.png", 1, None, "defect", "bolt", "test"),
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_as_spreadsheets_write_it(home: Path, delimiter: str, encoding: str) -> None:
    file = home / "manifest.csv"
    file.write_text(CSV.replace(",", delimiter).replace("\n", "\r\n"), encoding=encoding)
    for root in (home, file):
        dataset = open_dataset(root)
        assert (dataset.layout, dataset.samples, dataset.notes) == ("manifest", expected(home), ())
    assert open_dataset(file, name="x").categories == ("bolt", "nut")
    assert open_dataset(file, categories=["nut"]).samples == expected(home)[:3]
    with pytest.raises(OptionError, match=r"no category cog in .*; there are bolt, nut"):
        open_dataset(file, categories=["cog"])


def test_json_lines_with_the_names_of_published_codes(home: Path) -> None:
    rows = [
        {"image_path": "in/0.png", "label": 0.0, "class_name": "nut", "split": "train"},
        {"image_path": "in/1.png", "label": 0, "class_name": "nut", "mask_path": "",
         "split": "test"},
        {"image_path": "in/2.png", "label": 1.0, "class_name": "nut", "mask_path": "truth/2.png",
         "defect_type": "dent"},
        {"image_path": str(home / "in/3.png"), "label": "anomaly", "class_name": "bolt"},
    ]  # fmt: skip
    file = home / "list.jsonl"
    file.write_text("\n\n".join(map(json.dumps, rows)))
    assert open_dataset(file).samples == expected(home)


def test_good_images_without_a_split_are_divided_and_it_is_said(home: Path) -> None:
    image(home, *(f"more/{n}.png" for n in range(30)))
    rows = ["image,label,operator", "in/3.png,1,A", *(f"more/{n}.png,0,B" for n in range(30))]
    (home / "manifest.csv").write_text("\n".join(rows))
    dataset = open_dataset(home, name="parts")
    train, test = dataset.train("parts"), dataset.test("parts")
    assert len(train) + len(test) == 31
    assert 6 <= len(train) <= 24
    ignored, divided = dataset.notes
    assert ignored == "manifest.csv: columns not known and not used: operator"
    assert f"{len(train)} to learn from" in divided
    assert "30 good images without a split" in divided


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("in/1.png", "in/9.png"), r"manifest.csv:3: no such image .*in/9.png"),
        (CSV.replace("truth/2", "truth/9"), r"manifest.csv:4: no such mask .*truth/9.png"),
        (CSV.replace("in/1.png", "in/0.png"), r"manifest.csv:3: in/0.png is in line 2 too"),
        (CSV.replace("NG", "perhaps"), r"manifest.csv:5: label 'perhaps'; write 0"),
        (CSV.replace("NG", "2"), r"manifest.csv:5: label '2'"),
        (CSV.replace("NG", ""), r"manifest.csv:5: no label"),
        (CSV.replace("nut,train", "nut,trian"), r"manifest.csv:2: split 'trian'"),
        (CSV.replace("mask", "masks", 1), r"manifest.csv:2: column 'masks': call it 'mask'"),
        (CSV.replace("label", "lable", 1), r"column 'lable': call it 'label'"),
        (CSV.replace("image", "picture", 1), r"manifest.csv:2: no image; the columns image and"),
        (CSV + "in/1.png,0,,,nut,test,more\n", r"manifest.csv:6: more values than columns"),
        ("image,label\n", "no images in manifest layout"),
        ("", "no images in manifest layout"),
    ],
)
def test_wrong_lines_are_named(home: Path, text: str, message: str) -> None:
    (home / "manifest.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(home)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'image': 1}", "manifest.jsonl:2: not JSON"),
        ("[1, 2]", "manifest.jsonl:2: not an object"),
        ('{"image": "in/0.png"}', "manifest.jsonl:2: no label"),
        ('{"image": "in/0.png", "label": true}', "manifest.jsonl:2: label True"),
    ],
)
def test_wrong_json_lines_are_named(home: Path, line: str, message: str) -> None:
    (home / "manifest.jsonl").write_text('{"image": "in/1.png", "label": 0}\n' + line)
    with pytest.raises(DatasetError, match=message):
        open_dataset(home)


def test_a_manifest_that_is_no_text(home: Path) -> None:
    (home / "manifest.csv").write_bytes(b"image,label\n\xff\xfe\x00,0\n")
    with pytest.raises(DatasetError, match=r"cannot be read .*save it as UTF-8"):
        open_dataset(home)


def as_excel(text: str, separator: str = ";") -> str:
    return text.replace(",", separator).replace("\n", "\r\n")


@pytest.mark.parametrize(
    "data",
    [
        "sep=;\r\n" + as_excel(CSV),
        '\ufeff"sep=;"\r\n' + as_excel(CSV),
        "SEP=|\n" + as_excel(CSV, "|"),
        as_excel(CSV, "\t").encode("utf-16"),
        CSV.encode("utf-16-le"),
        ";;;;;\r\n" + as_excel(CSV) + ";;;;;\r\n\r\n",
        CSV.replace("\n", "\n\n"),
        CSV.replace("\n", ",,,\n"),
        CSV.replace("in/", ".\\in\\").replace("truth/", "truth\\"),
        CSV.replace("image,label,mask", "Image Path;LABEL;Mask-Path").replace(",", ";"),
        CSV.replace("in/1.png,good", '"in/1.png", "Good"'),
        CSV.replace("\n", "\r"),
    ],
)
def test_tables_from_excel_and_windows(home: Path, data: str | bytes) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    (home / "manifest.csv").write_bytes(raw)
    assert open_dataset(home).samples == expected(home)
    (home / "list.txt").write_bytes(raw)
    assert open_dataset(home / "list.txt").samples == expected(home)


def test_names_in_the_encodings_of_other_systems(home: Path) -> None:
    image(home, "in/pièce.png")
    (home / "manifest.csv").write_bytes(CSV.replace("in/0", "in/pièce").encode("cp1252"))
    dataset = open_dataset(home)
    assert dataset.train("nut")[0].image == home / "in/pièce.png"
    assert "read as Windows-1252; save it as UTF-8" in dataset.notes[0]
    (home / "manifest.csv").write_text(CSV.replace("in/0", "in/pie\u0300ce"), encoding="utf-8")
    assert open_dataset(home).train("nut")[0].image == home / "in/pièce.png"
    # U+2028 ends no line of JSON.
    image(home, "in/a\u2028b.png")
    rows = [{"image": "in/a\u2028b.png", "label": 0}, {"image": "in/2.png", "label": 1}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (home / "list.jsonl").write_text(text, encoding="utf-8")
    assert len(open_dataset(home / "list.jsonl").samples) == 2


def test_paths_that_lead_elsewhere_are_named(home: Path) -> None:
    image(home.parent, "elsewhere/x.png")
    row = "../elsewhere/x.png,1,truth/2.png,,nut,test\n"
    text = CSV.replace("in/0.png", "IN/0.PNG") + row
    (home / "manifest.csv").write_text(text.replace("in/1.png,good,", "in/1.png,good,truth/2.png"))
    notes = open_dataset(home).notes
    assert "1 file outside of" in (said := "\n".join(notes))
    assert "../elsewhere/x.png: used as named" in said
    assert "1 path in other capitals than the file, such as IN/0.PNG: found all the same" in said
    assert "1 good image with a mask, such as truth/2.png: the mask is not used" in said
    assert "masks of more than one image: 1, such as truth/2.png" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            CSV + "./in/../in/1.png,1,,,nut,test\n",
            r":6: ./in/../in/1.png is in line 3 too, as in/1",
        ),
        (CSV + "in/link.png,0,,,nut,train\n", r":6: in/link.png is in line 3 too, as in/1.png"),
        (CSV.replace("truth/2", "in/2"), r":4: in/2.png is its own mask"),
        (CSV.replace("split", "label"), r":1: two columns are called 'label'"),
        (CSV.replace("split", ""), r":2: 'train' is in a column without a name"),
        (CSV.replace("in/1.png", "x" * 5000), r":3: no such image .*x \.\.\."),
        (CSV.replace("in/1.png", "x" * 200_000), r":3: no line of a table"),
        (CSV.replace("in/1.png", '"in/1.png'), r":5: no line of a table"),
        (CSV.replace("in/1.png", "in"), r":3: no such image .*/in; paths start"),
        (CSV.replace("in/1.png", "in/1\0.png"), "cannot be read as text"),
    ],
)
def test_what_tables_cannot_mean(home: Path, text: str, message: str) -> None:
    (home / "in/link.png").symlink_to(home / "in/1.png")
    (home / "manifest.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(home)
