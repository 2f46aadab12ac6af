"""Every format says the same of the same marks, and what libraries write is read here."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as pycoco
from tests.labels import parts
from tests.labels.parts import DENT, HEIGHT, SCRATCH, WIDTH, bad, flat, write

from offnominal.errors import DatasetError
from offnominal.labels.formats.runs import brush_mask, coco_mask, coco_runs
from offnominal.labels.gather import gather
from offnominal.labels.labelled import Labelled, Mark

SIZE = (HEIGHT, WIDTH)
SEGMENT = {"segmentation": [flat(SCRATCH)], "category_id": 1}


def write_coco(root: Path) -> Path:
    return write(root / "coco.json", parts.coco(["images\\a.png"], [SEGMENT, {}]))


def write_yolo(root: Path) -> Path:
    write(root / "set/data.yaml", "train: images\nnames:\n  0: scratch\n  1: dent\n")
    return write(root / "set/labels/a.txt", parts.yolo()).parent


def write_yolo_yaml(root: Path) -> Path:
    return write_yolo(root).parent / "data.yaml"


def write_yolo_classes(root: Path) -> Path:
    write(root / "labels/classes.txt", "scratch\ndent\n")
    return write(root / "labels/train/a.txt", parts.yolo()).parents[1]


def write_labelme(root: Path) -> Path:
    return write(root / "bad/a.json", parts.labelme("..\\elsewhere\\a.png")).parent


def write_label_studio(root: Path) -> Path:
    return write(root / "export.json", parts.label_studio("/data/upload/3/0a1b2c3d-a.png"))


@pytest.mark.parametrize(
    "writer",
    [
        write_coco,
        write_yolo,
        write_yolo_yaml,
        write_yolo_classes,
        write_labelme,
        write_label_studio,
    ],
)
def test_a_polygon_and_a_box_in_every_format(
    writer: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = bad(tmp_path, "a.png", "b.png")
    first, second = gather(folder, boxes=writer(tmp_path)).labelled
    assert (first.kinds, second.kinds, second.marks) == (("dent", "scratch"), ("defect",), ())
    marks = {mark.kind: mark for mark in first.marks}
    assert marks["dent"].box == pytest.approx(DENT, abs=1e-4)
    assert not marks["dent"].exact
    (outline,) = marks["scratch"].polygons
    assert outline == pytest.approx(np.array(SCRATCH), abs=1e-4)


def test_boxes_of_pascal_voc(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.jpg", "b.png")
    write(tmp_path / "xml/x.xml", parts.voc("a.jpg"))
    polygon = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(SCRATCH, 1))
    drawn = f"<object><name>scratch</name><polygon>{polygon}</polygon></object></annotation>"
    write(tmp_path / "xml/b.xml", parts.voc("").replace("</annotation>", drawn))
    first, second = gather(folder, boxes=tmp_path / "xml").labelled
    assert [mark.box for mark in first.marks] == [DENT]
    assert second.kinds == ("dent", "scratch")
    assert np.array_equal(second.marks[1].polygons[0], SCRATCH)


def test_xml_that_declares_entities_is_refused(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + parts.voc("a.png", "&b;")
    file = write(tmp_path / "a.xml", bomb)
    with pytest.raises(DatasetError, match=r"a\.xml: declares a document type"):
        gather(folder, boxes=file)
    file.write_bytes(file.read_text().encode("utf-16"))
    with pytest.raises(DatasetError, match=r"a\.xml: declares a document type"):
        gather(folder, boxes=file)


def noise(seed: int, share: float = 0.3) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(SIZE) < share


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_cocos_runs_are_those_of_pycocotools(share: float) -> None:
    mask = noise(1, share)
    packed = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(coco_mask(coco_runs(packed["counts"].decode()), SIZE), mask)


@pytest.mark.parametrize("text", ["", "0", "0" * 100, "\x00", "oooooooooo", "PPPPPPPPPPPP"])
def test_damaged_runs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        coco_mask(coco_runs(text), SIZE)


def test_masks_of_coco_label_studio_and_labelme(tmp_path: Path) -> None:
    mask = noise(2)
    mask[:4] = mask[:, -3:] = False
    mask[4, 0] = mask[20, 10] = True
    packed = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    folder = bad(tmp_path, "a.png", "b.png", "c.png", "d.png")
    loose = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=True)), prepend=0)
    runs = [*loose.tolist(), HEIGHT * WIDTH - int(loose.sum())]
    both = [{"segmentation": {"size": SIZE, "counts": packed["counts"].decode()}},
            {"segmentation": {"size": SIZE, "counts": runs}, "image_id": 1}]  # fmt: skip
    write(tmp_path / "all/coco.json", parts.coco(["a.png", "b.png"], both))
    value = {"format": "rle", "rle": parts.brush(mask), "brushlabels": ["dent"]}
    task = parts.label_studio("s3://x/c.png", {"id": "m", "type": "brushlabels", "value": value})
    write(tmp_path / "all/studio.json", task)
    inside = Image.fromarray(mask[4:, :-3])
    inside.save(data := io.BytesIO(), "PNG")
    shape = {"label": "dent", "shape_type": "mask", "points": [[0, 4], [WIDTH - 4, HEIGHT - 1]],
             "mask": base64.b64encode(data.getvalue()).decode()}  # fmt: skip
    write(tmp_path / "all/d.json", parts.labelme("d.png", shape))
    for one in gather(folder, boxes=tmp_path / "all").labelled:
        assert one.kinds == ("dent",)
        (mark,) = one.marks
        assert np.array_equal(mark.where(SIZE), mask), one.image


def test_a_damaged_brush_is_refused() -> None:
    data = parts.brush(noise(3))
    for broken in (data[:3], data[: len(data) // 2], [255] * 40, [*data[:4], *[0] * 400]):
        with pytest.raises(ValueError, match="brush"):
            brush_mask(broken, SIZE)


def area(mark: Mark) -> float:
    (points,) = mark.polygons
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_label_studios_choices_labels_turned_boxes_and_annotators(tmp_path: Path) -> None:
    folder = bad(tmp_path, "my part.png")
    size = {"id": "r", "type": "rectangle"}
    turned = {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90}
    results = (
        {"id": "c", "type": "choices", "value": {"choices": ["burnt"]}},
        {**size, "value": turned},
        {**size, "type": "labels", "value": {**turned, "labels": ["dent"]}},
        {"id": "e", "type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 10,
         "radiusY": 20, "rotation": 0, "ellipselabels": ["hole"]}},
    )  # fmt: skip
    data = parts.label_studio("/data/local-files/?d=bad/my%20part.png", *results)
    older = {**data[0]["annotations"][0], "result": [], "updated_at": "2026-01-01"}
    thrown = {**older, "was_cancelled": True, "updated_at": "2027-01-01"}
    data[0]["annotations"] += [older, thrown]
    (one,) = gather(folder, boxes=write(tmp_path / "export.json", data)).labelled
    assert one.kinds == ("burnt", "dent", "hole")
    box, ellipse = one.marks
    # 16 wide and 12 high, turned clockwise about its upper left corner at (32, 12).
    assert box.box == pytest.approx((20, 12, 12, 16))
    assert not box.exact
    assert area(ellipse) == pytest.approx(np.pi * 6.4 * 9.6, rel=0.01)


def test_labelmes_circles_and_flags_and_a_box_written_as_a_polygon(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png", "b.png")
    circle = {"label": "hole", "shape_type": "circle", "points": [[20, 20], [20, 28]]}
    data = {**parts.labelme("a.png", circle), "flags": {"burnt": True, "seen": False}}
    write(tmp_path / "all/a.json", data)
    left, top, width, height = DENT
    box = [left, top, left + width, top, left + width, top + height, left, top + height]
    write(tmp_path / "all/c.json", parts.coco(["b.png"], [{"segmentation": [box]}]))
    first, second = gather(folder, boxes=tmp_path / "all").labelled
    assert first.kinds == ("burnt", "hole")
    assert area(first.marks[0]) == pytest.approx(np.pi * 64, rel=0.01)
    assert second.marks[0].box == DENT
    assert not second.marks[0].exact


def told(folder: Path, file: Path) -> list[str]:
    problems: list[Any] = []
    gather(folder, boxes=file, tell=problems.append)
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ({"category_id": 9}, "annotation 0 (a.png): category_id 9 is not known; there are 1 scr"),
        ({"image_id": 5}, "annotation 0: image_id 5 is that of no image in the file"),
        ({"bbox": [4, 4, 0, 9]}, "(a.png): an empty box, 0 wide and 9 high; draw it again"),
        ({"bbox": [4, 4, 90, 9]}, "reaches from (4, 4) to (94, 13), beyond the image of 64x48"),
        ({"bbox": [-1, 4, 0.5, 9]}, "(a.png): a box beside the image"),
        ({"bbox": [4, 4, float("nan"), 9]}, "bbox"),
        ({"bbox": "4,4,9,9"}, "annotation 1: bbox: input should be"),
        ({"bbox": []}, "has neither a box nor a segmentation"),
        ({"segmentation": [[1, 2, 3]]}, "a polygon of 3 numbers; three points or more"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "a polygon without an area"),
        ({"segmentation": {"size": SIZE, "counts": [3072]}}, "an empty mask"),
        ({"segmentation": {"size": SIZE, "counts": [9]}}, "run lengths cover 9 pixels of 64x48"),
        ({"segmentation": {"size": [4, 4], "counts": [9, 7]}}, "a mask of 4x4 pixels for 64x48"),
    ],
)
def test_what_does_not_fit_is_told(mark: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    file = write(tmp_path / "coco.json", parts.coco(["a.png"], [mark]))
    (problem,) = told(folder, file)
    assert problem.startswith("coco.json, ")
    assert words in problem
    with pytest.raises(DatasetError) as error:
        gather(folder, boxes=file)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "0 0.5 0.5 1.5 0.5", "a.txt, line 1: 1.5 is no share of the image's side"),
        ("a.txt", "\n0 0.5 0.5 0.1", "a.txt, line 2: 4 numbers; a box has 5"),
        ("a.txt", "3 0.5 0.5 0.1 0.1", "class 3, and no classes.txt or data.yaml names"),
        ("a.json", "{", "a.json: is no JSON"),
        ("a.json", '{"annotations": []}', "a.json: has no list 'images'"),
        ("a.json", json.dumps([{"image": "a.png", "annotation_id": 1}]), "JSON-MIN"),
        ("a.json", json.dumps(parts.labelme("a.png", {"label": "x", "points": [[1, 1], [2, 2]],
                                                      "shape_type": "line"})),
         "a.json, shape 1: a line has no area; known are polygon"),
        ("a.xml", parts.voc("a.png", size=(48, 60)), "says 60x48 pixels, "),
        ("a.xml", parts.voc("a.png", kind="good"), "object 1: marks a defect and is called good"),
        ("a.xml", parts.voc("a.png").replace("xmax", "x"), "object 1: has no bndbox/xmax"),
    ],
)  # fmt: skip
def test_what_does_not_fit_in_a_file_of_one_image(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    folder = bad(tmp_path, "a.png")
    (problem,) = told(folder, write(tmp_path / "labels" / name, text))
    assert words in problem


@pytest.mark.parametrize("text", ["<svg/>", "<annotations/>"])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    with pytest.raises(
        DatasetError, match=r"a\.xml: no annotations that are known; known are COCO"
    ):
        gather(folder, boxes=write(tmp_path / "a.xml", text))
    with pytest.raises(DatasetError, match=r"no annotations that are known .found no such file"):
        gather(folder, boxes=folder)
    with pytest.raises(DatasetError, match="no such file or folder of annotations; check --boxes"):
        gather(folder, boxes=tmp_path / "absent.json")


def test_a_rectangle_is_a_box_in_every_format(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png", "b.png", "c.png")
    left, top, width, height = DENT
    upright = np.array([[left, top], [left + width, top], [left + width, top + height],
                        [left, top + height]])  # fmt: skip
    turned = np.array([[20.0, 10.0], [32.0, 15.0], [27.0, 27.0], [15.0, 22.0]])  # by 3, 4, 5
    shares = [(points / (WIDTH, HEIGHT)).round(6).ravel() for points in (upright, turned)]
    lines = ["0 " + " ".join(map(str, own)) + "\n" for own in shares]
    write(tmp_path / "all/a.txt", "".join(lines))
    shape = {"label": "dent", "points": upright.tolist(), "shape_type": "polygon"}
    write(tmp_path / "all/b.json", parts.labelme("b.png", shape))
    quadrangle = {**shape, "points": [*turned[:3].tolist(), [15.0, 23.0]]}
    write(tmp_path / "all/c.json", parts.labelme("c.png", quadrangle))
    first, second, third = gather(folder, boxes=tmp_path / "all").labelled
    assert [mark.exact for mark in (*first.marks, *second.marks)] == [False] * 3
    assert first.marks[0].box == pytest.approx(DENT, abs=1e-3)
    assert first.marks[1].box == pytest.approx((15, 10, 17, 17), abs=1e-3)
    assert third.marks[0].exact


def test_what_label_studio_asks_beside_marks(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    place = {"x": 50, "y": 25, "width": 25, "height": 25}
    results: tuple[dict[str, Any], ...] = (
        {"id": "n", "type": "textarea", "value": {"text": ["seen on Monday"]}},
        {"id": "r", "type": "rectanglelabels", "value": {**place, "rectanglelabels": ["dent"]}},
        {"id": "r", "type": "textarea", "value": {**place, "text": ["deep"]}},
        {"id": "q", "type": "rating", "value": {"rating": 4}},
        {"type": "relation", "from_id": "r", "to_id": "r", "direction": "right"},
    )
    file = write(tmp_path / "export.json", parts.label_studio("a.png", *results))
    (one,) = gather(folder, boxes=file).labelled
    assert [mark.kind for mark in one.marks] == ["dent"]
    write(file, parts.label_studio("a.png", {**results[1], "image_rotation": 90}))
    (problem,) = told(folder, file)
    assert "result 1: was drawn with the image turned by 90 degrees; draw it again" in problem


def test_soft_edges_of_a_brush_count_from_half_on() -> None:
    sizes = "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits = f"{12:032b}{7:05b}{sizes}0" + "01" + f"{11:04b}"
    for opacity in (127, 128, 255):
        bits += f"{255:08b}" * 3 + f"{opacity:08b}"
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert brush_mask(data, (1, 3)).tolist() == [[False, True, True]]


def test_messages_name_files_with_their_folders(tmp_path: Path) -> None:
    folder = bad(tmp_path, "train/a.png", "val/a.png")
    for part in ("train", "val"):
        write(tmp_path / "labels" / part / "a.txt", "0 0.5 0.5 0.1")
    problems = told(folder, tmp_path / "labels")
    assert [one.split(":")[0] for one in problems] == ["train/a.txt, line 1", "val/a.txt, line 1"]


@pytest.mark.slow
def test_what_supervision_writes_is_what_is_read(tmp_path: Path) -> None:
    import supervision

    folder = bad(tmp_path, "a.png", "b.png")
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 5:15, 8:30] = masks[1, 20:40, 33:50] = True
    masks[1, 20:30, 33:40] = False
    boxes = supervision.mask_to_xyxy(masks).astype(float)
    found = supervision.Detections(xyxy=boxes, mask=masks, class_id=np.array([0, 1]))
    files = [str(folder / "a.png"), str(folder / "b.png")]
    nothing = supervision.Detections.empty()
    data = supervision.DetectionDataset(
        classes=["scratch", "dent"], images=files,
        annotations={files[0]: found, files[1]: nothing},
    )  # fmt: skip
    data.as_coco(annotations_path=str(tmp_path / "coco.json"))
    data.as_yolo(annotations_directory_path=str(tmp_path / "yolo/labels"),
                 data_yaml_path=str(tmp_path / "yolo/data.yaml"))  # fmt: skip
    data.as_pascal_voc(annotations_directory_path=str(tmp_path / "voc"))
    for written in ("coco.json", "yolo", "voc"):
        one: Labelled = gather(folder, boxes=tmp_path / written).labelled[0]
        assert one.kinds == ("dent", "scratch"), written
        for kind, mask in zip(("scratch", "dent"), masks, strict=True):
            (mark,) = [mark for mark in one.marks if mark.kind == kind]
            here = mark.where(SIZE)
            if not mark.exact:  # a rectangle, of which a box is all there is to say
                mask = np.zeros_like(mask)
                left, top, right, bottom = boxes[("scratch", "dent").index(kind)].astype(int)
                mask[top : bottom + 1, left : right + 1] = True
            # Their outlines leave out the last row and column.
            assert (here & mask).sum() / (here | mask).sum() > 0.7, (written, kind)
