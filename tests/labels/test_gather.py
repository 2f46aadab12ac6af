"""Defective images with what is known of each, mixed freely, and what is said of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.datasets.pictures import image, mask, save
from tests.labels import parts
from tests.labels.parts import DENT, HEIGHT, SCRATCH, WIDTH, bad, flat, write

from offnominal.errors import DatasetError, OptionError
from offnominal.labels.gather import gather
from offnominal.labels.labelled import Mark

SIZE = (HEIGHT, WIDTH)


def test_some_with_masks_some_with_boxes_some_with_nothing(tmp_path: Path) -> None:
    folder = bad(tmp_path, "dent/1.png", "dent/2.png", "scratch/1.png", "x.png")
    mask(tmp_path, "masks/dent/1_mask.png", "masks/dent/9.png", size=SIZE)
    file = write(tmp_path / "coco.json", parts.coco(["scratch/1.png"], [{}]))
    found = gather(folder, masks=tmp_path / "masks", boxes=file)
    one, two, three, four = found.labelled
    assert one.image == folder / "dent/1.png"
    assert [m.mask for m in one.marks] == [tmp_path / "masks/dent/1_mask.png"]
    assert [each.kinds for each in found.labelled] == [("defect",)] * 2 + [("dent",), ("defect",)]
    assert (two.marks, four.marks) == ((), ())
    assert three.marks[0].box == DENT
    (note,) = found.notes
    assert note.startswith("1 mask without an image of that name, such as ")
    by_folder = gather(folder, tmp_path / "masks", file, "by-folder")
    kinds = [("dent",), ("dent",), ("scratch",), ("defect",)]
    assert [each.kinds for each in by_folder.labelled] == kinds
    assert [mark.kind for each in by_folder.labelled for mark in each.marks] == ["dent", "scratch"]
    assert (
        "marks called dent in images of the class scratch: 1, such as 1.png" in (by_folder.notes[1])
    )


def test_a_folder_of_masks_of_other_images_is_refused(tmp_path: Path) -> None:
    folder = bad(tmp_path, "1.png")
    mask(tmp_path, "masks/9_mask.png", size=SIZE)
    told = r"masks: holds a mask of none of the 1 defective image, such as 1\.png; .* 1_mask\.png"
    with pytest.raises(DatasetError, match=told):
        gather(folder, masks=tmp_path / "masks")


def test_the_folder_itself_names_the_class_where_there_is_none_below(tmp_path: Path) -> None:
    folder = bad(tmp_path, "dent/1.png", "scratch/1.png")
    several = gather([folder / "dent", f"{folder}/scratch/*.png"], classes="by-folder")
    assert [each.kinds for each in several.labelled] == [("dent",), ("scratch",)]
    pattern = gather(f"{folder}/*/*.png", classes="by-folder")
    assert [each.kinds for each in pattern.labelled] == [("dent",), ("scratch",)]
    image(folder, "good/7.png")
    with pytest.raises(OptionError, match=r"7\.png: lies among the defects, in a folder of good"):
        gather(folder)
    with pytest.raises(OptionError, match="--classes 'folder': did you mean by-folder"):
        gather(folder, classes="folder")  # type: ignore[arg-type]  # what a user may write


def test_a_mask_says_where_and_boxes_say_what(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    marked = np.zeros(SIZE, np.uint8)
    marked[22:30, 38:50] = marked[8:12, 10:24] = marked[40:44, 2:6] = 255
    save(tmp_path / "masks/a.png", marked)
    marks = [{}, {"category_id": 1, "segmentation": [flat(SCRATCH)]}]
    file = write(tmp_path / "coco.json", parts.coco(["a.png"], marks))
    (one,) = gather(folder, tmp_path / "masks", file).labelled
    dent, scratch, other = one.marks
    assert [mark.kind for mark in one.marks] == ["dent", "scratch", "defect"]
    # The box begins at column 40, and what hangs together is one defect.
    assert dent.where(SIZE).sum() == 8 * 12
    assert scratch.where(SIZE).sum() == 4 * 14
    assert other.where(SIZE)[40:44, 2:6].all()
    union = np.any([mark.where(SIZE) for mark in one.marks], 0)
    assert np.array_equal(union, marked > 0)
    marked[22:30, 38:50] = 0
    save(tmp_path / "masks/a.png", marked)
    with pytest.raises(DatasetError, match=r"a\.png of .*: the mask marks nothing where dent is"):
        gather(folder, tmp_path / "masks", file)


def test_masks_that_are_odd_or_do_not_fit(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png", "b.png")
    mask(tmp_path, "masks/a.png", size=SIZE)
    mask(tmp_path, "masks/b.png", level=0, size=SIZE)
    found = gather(folder, tmp_path / "masks")
    assert [len(each.marks) for each in found.labelled] == [1, 0]
    (note,) = found.notes
    assert note.startswith("empty masks of defective images: 1, such as ")
    mask(tmp_path, "masks/b.png", size=(HEIGHT, WIDTH + 9))
    with pytest.raises(DatasetError, match=r"b\.png: is of another shape than its image .73x48"):
        gather(folder, tmp_path / "masks")
    mask(tmp_path, "masks/b.png", level=2, size=SIZE)
    with pytest.raises(DatasetError, match=r"b\.png: reaches the threshold in no pixel"):
        gather(folder, tmp_path / "masks")
    levels = gather(folder, tmp_path / "masks", mask_threshold=1).labelled[1].marks
    assert levels[0].threshold == 1
    with pytest.raises(DatasetError, match="no such folder of masks; check --masks"):
        gather(folder, tmp_path / "absent")


def test_marks_twice_a_little_outside_and_on_no_defect_are_told(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    beyond = {"bbox": [40.0, 20.0, 25.2, 10.0], "category_id": 1}
    marks = [{}, {}, beyond, {"image_id": 1}]
    file = write(tmp_path / "coco.json", parts.coco(["a.png", "good/b.png", "good/c.png"], marks))
    (one,), notes = gather(folder, boxes=file)
    assert [mark.kind for mark in one.marks] == ["dent", "scratch"]
    assert one.marks[1].box == (40.0, 20.0, 24.0, 10.0)
    told = "\n".join(notes)
    assert "marks that are there twice: 1, such as coco.json, annotation 1 (a.png): each" in told
    assert "a little beyond their image: 1, such as coco.json, annotation 2 (a.png): cut" in told
    assert "not among the defects: 1, such as coco.json, image 2 (good/b.png): not used" in told


def test_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folder = bad(tmp_path, "dent/000.png", "scratch/000.png")
    names = ["x/good/000.png", "x/scratch/000.png", "x/hole/000.png"]
    marks = [{"image_id": 0}, {"image_id": 1}, {"image_id": 2}]
    file = write(tmp_path / "coco.json", parts.coco(names, marks))
    dent, scratch = gather(folder, boxes=file).labelled
    assert not dent.marks
    assert len(scratch.marks) == 1
    write(file, parts.coco(["000.png"], [{}]))
    with pytest.raises(DatasetError, match=r"fits 2 images, .*name them with their folders"):
        gather(folder, boxes=file)
    write(file, parts.coco(["other.png"], [{}]))
    with pytest.raises(DatasetError, match=r"annotates none of the 2 defective images.*000\.png"):
        gather(folder, boxes=file)
    write(file, parts.coco(["dent/000.png", "dent/000.PNG"], [{}, {"image_id": 1}]))
    with pytest.raises(DatasetError, match=r"is of 000\.png, of which coco\.json, image 1 "):
        gather(folder, boxes=file)


def test_files_of_one_image_go_with_the_image_in_their_folder(tmp_path: Path) -> None:
    folder = bad(tmp_path, "dent/0.png", "scratch/0.png")
    shape = {"shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    for kind in ("dent", "scratch"):
        write(folder / kind / "0.json", parts.labelme("0.png", {**shape, "label": kind}))
    assert [one.kinds[0] for one in gather(folder, boxes=folder).labelled] == ["dent", "scratch"]
    names = write(tmp_path / "set/classes.txt", "dent\nscratch\n").parent
    write(names / "dent/0.txt", "0 0.5 0.5 0.1 0.1")
    write(names / "hole/0.txt", "1 0.5 0.5 0.1 0.1")
    found = gather(folder, boxes=names)
    assert [one.kinds for one in found.labelled] == [("dent",), ("defect",)]
    assert found.notes[-2].startswith("annotated images that are not among the defects: 1, such")


def test_capitals_and_suffixes_count_where_they_must(tmp_path: Path) -> None:
    folder = bad(tmp_path, "A.png", "a.png", "b.jpg", "b.png", "part.png")
    names = ["A.png", "a.png", "b.png"]
    file = write(tmp_path / "coco.json", parts.coco(names, [{"image_id": 1}, {"image_id": 2}]))
    marks = {one.image.name: len(one.marks) for one in gather(folder, boxes=file).labelled}
    assert marks == {"A.png": 0, "a.png": 1, "b.jpg": 0, "b.png": 1, "part.png": 0}
    write(tmp_path / "me/b.json", parts.labelme("elsewhere/b.jpg"))
    found = gather(folder, boxes=tmp_path / "me").labelled
    assert [one.image.name for one in found if one.marks] == ["b.jpg"]
    write(tmp_path / "yolo/part.01.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(DatasetError, match="annotates none of the 5 defective images"):
        gather(folder, boxes=tmp_path / "yolo")


def test_an_image_that_its_exif_data_turn(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.jpg", exif=exif)
    upright = parts.voc("a.jpg", size=(WIDTH, HEIGHT)).replace("52<", "44<")
    file = write(tmp_path / "a.xml", upright)
    (one,) = gather(folder, boxes=file).labelled
    assert one.marks[0].box == (*DENT[:2], 4, DENT[3])
    write(file, parts.voc("a.jpg"))
    with pytest.raises(DatasetError, match=r"64x48 pixels, .* has 48x64 once it is turned"):
        gather(folder, boxes=file)


def test_what_else_does_not_fit_is_counted(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png")
    marks = [{"category_id": 9}, {"image_id": 9}, {"bbox": [1, 1, 0, 0]}]
    file = write(tmp_path / "coco.json", parts.coco(["a.png"], marks))
    with pytest.raises(DatasetError, match="and 2 more that do not fit: `offnominal datasets"):
        gather(folder, boxes=file)
    problems: list[object] = []
    (one,), _ = gather(folder, boxes=file, tell=problems.append)
    assert len(problems) == 3
    assert one.marks == ()


def test_an_image_that_cannot_be_read_is_left_to_the_reader(tmp_path: Path) -> None:
    folder = bad(tmp_path, "a.png", "b.png")
    mask(tmp_path, "masks/a.png", "masks/b.png", size=SIZE)
    (folder / "a.png").write_bytes(b"nonsense")
    file = write(tmp_path / "coco.json", parts.coco(["a.png"], [{}]))
    one, two = gather(folder, tmp_path / "masks", file).labelled
    assert (len(one.marks), len(two.marks)) == (0, 1)
    assert isinstance(two.marks[0], Mark)
