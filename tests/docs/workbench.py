"""A folder in which what the pages show can be run: all that their commands name, tiny."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from tests.cli.conftest import offnominal, passed
from tests.seeded import CLIP_DEEP, CLIP_WIDE, UNTRAINED, save_clip, save_dinov2_vits14

from offnominal import AnomalyDINO
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts
from offnominal.language.learnedfile import LearnedFile, write_learned

SIDE = 96


@cache
def fabric(number: int) -> Image.Image:
    """A picture of 320 pixels, which takes long enough to draw."""
    return Image.fromarray(draw_good("fabric", 0, number))


def good(number: int) -> Image.Image:
    """Fabric as it should be: another piece for each number."""
    place, sheet = divmod(number, 12)
    left, top = 37 * (place % 6), 41 * (place // 6)
    return fabric(sheet).crop((left, top, left + SIDE, top + SIDE))


@cache
def bad(number: int) -> tuple[Image.Image, Image.Image]:
    """Fabric with a defect, and where it is."""
    image, mask, _ = draw_defective("fabric", 0, number)
    drawn = [Image.fromarray(each).resize((SIDE, SIDE)) for each in (image, mask.astype(np.uint8))]
    return drawn[0], drawn[1].point(lambda value: 255 * value)


def write(image: Image.Image, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def folder(root: Path, first: int, count: int = 4) -> None:
    """Good pictures, none of which another folder has."""
    for n in range(count):
        write(good(first + n), root / f"{n:03}.png")


def category(root: Path, first: int) -> None:
    """A category in MVTec's layout."""
    folder(root / "train/good", first)
    folder(root / "test/good", first + 4, 3)  # MuSc takes five pictures
    for n in range(2):
        image, mask = bad(n)
        write(image, root / f"test/scratch/{n:03}.png")
        write(mask, root / f"ground_truth/scratch/{n:03}_mask.png")


def write_cloud(path: Path, seed: int) -> None:
    """A dome as points in no order, as text."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-0.02, 0.02, (2, 600))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.stack([x, y, 0.5 + 10 * (x**2 + y**2)], 1))


def prepare(root: Path) -> None:
    """Write it: pictures, data sets, weights, a model."""
    folder(root / "good", 0, 8)
    for n, name in enumerate(("17.png", "18.png", "worn-part.jpg")):
        write(good(8 + n), root / "good" / name, root / "unsorted" / name)
    for n in range(4):
        image, mask = bad(n)
        lots = ("new", "incoming", "lot17", "bad/scratch", "parts/bad/scratch", "unsorted")
        write(image, *(root / f"{lot}/b{n}.png" for lot in lots))
        write(
            mask, root / f"masks/scratch/b{n}_mask.png", root / f"parts/masks/scratch/b{n}_mask.png"
        )
    lots = ("more-good", "new-good", "parts/good", "parts/more-good", "lot17", "new", "incoming")
    lots += ("unsorted", "mostly_good", "pictures", "photographs", "dtd/images", "imagenet/train")
    for n, lot in enumerate(lots):
        folder(root / lot, 20 + 8 * n, 8 if lot in ("unsorted", "mostly_good", "lot17") else 4)
    for n, name in enumerate(("nuts", "bolts", "washers", "tiles", "fabric", "part")):
        folder(root / name / "good", 120 + 20 * n, 10)
        folder(root / name / "train/good", 120 + 20 * n, 10)
        folder(root / name / "test/good", 130 + 20 * n, 2)
    sheet = good(240).resize((112, 112))
    single = ("new/0001.png", "station3/0001.png", "extra/a.png", "more/a/left_1.tif")
    write(good(241), *(root / name for name in (*single, "false-alarm.jpg")))
    write(bad(5)[0], root / "suspicious.jpg")
    write(sheet, root / "sheets/a.png", root / "sheets/b.png")
    for n, name in enumerate(("bottle", "cable")):
        category(root / "DATASET" / name, 20 * n)
        category(root / "mvtec" / name, 20 * n)
    for name in ("mtd/magnetic_tile", "my-parts/gear", "visa/gear", "VISA/gear"):
        category(root / name, 0)
    folder(root / "mtd/magnetic_tile/train/good", 200, 10)  # enough for methods that train
    for n in range(12):
        write(good(n), root / f"VisA/candle/Data/Images/Normal/{n:04}.JPG")
    write(bad(0)[0], root / "VisA/candle/Data/Images/Anomaly/000.JPG")
    write(bad(0)[1], root / "VisA/candle/Data/Masks/Anomaly/000.png")
    write(good(0), root / "BrainMRI/no/1 no.jpeg")
    write(bad(0)[0], root / "BrainMRI/yes/Y1.jpg")
    rows = ["image,label", *(f"good/{n:03}.png,good" for n in range(8)), "bad/scratch/b0.png,bad"]
    (root / "manifest.csv").write_text("\n".join(rows))
    marked = {
        "images": [{"id": 1, "file_name": "b1.png"}],
        "categories": [{"id": 1, "name": "scratch"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 30, 30]}],
    }
    (root / "annotations.json").write_text(json.dumps(marked))
    (root / "names.csv").write_text("category,name\ngear,gear wheel\n")
    told = [{"image": f"new/{n:03}.png", "opinion": "accept"} for n in range(4)]
    told += [{"image": f"new/b{n}.png", "opinion": "reject"} for n in range(2)]
    head = {"format": "offnominal opinions 1", "inspected": 9}
    (root / "opinions.json").write_text(json.dumps(head | {"opinions": told}))
    for n in range(6):
        write_cloud(root / "clouds" / ("good" if n < 4 else "new") / f"{n}.xyz", n)
    (root / "last-run").touch()
    os.utime(root / "last-run", (0, 0))  # long before the new ones came
    detector = AnomalyDINO(backbone="builtin", rotations="none").fit(str(root / "good"))
    detector.save(root / "part.offn")
    detector.save(root / "two.offn")
    for name, learned in (
        ("prompts", AnomalyCLIPPrompts(128, 4, 2, 2)),
        ("coop", CoOpPrompts(128, 4)),
    ):
        about = LearnedFile("anomalyclip" if name == "prompts" else name, learned.settings())
        write_learned(root / f"{name}.safetensors", learned, about)
    cells = ("benchmark", "--data", "my-parts", "--backbone", "builtin", "--seeds", 1, "-o", "runs")
    passed(offnominal(*cells, "--no-cache", cwd=root))
    small = ("--width", 0.125, "--dim", 16, "--steps", 1, "--batch", 2, "--resolution", 64)
    words = ("train", "efficientad-teacher", "--data", "pictures", "-o", "teacher.safetensors")
    passed(offnominal(*words, *small, "--backbone", "builtin", cwd=root))


def weights(root: Path) -> dict[str, Path]:
    """Networks drawn at random, which say so: enough to see that a command runs."""
    import timm

    root.mkdir()
    narrow = CLIP_DEEP | {"vision_cfg": CLIP_DEEP["vision_cfg"] | {"image_size": 112}}
    found = {
        "dinov2": save_dinov2_vits14(root),
        "clip": save_clip(root, narrow, "deep"),
        "winclip": save_clip(root, CLIP_WIDE, "wide"),
    }
    for name in ("resnet18", "mobilenetv2_100"):  # as a page has its reader write them
        found[name] = root / f"{name}.safetensors"
        state = timm.create_model(name).state_dict()
        save_file(state, found[name], metadata=UNTRAINED | {"model": name})
    return found


def copy(prepared: Path, target: Path) -> None:
    shutil.copytree(prepared, target, dirs_exist_ok=True)
