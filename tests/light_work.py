"""What the ground does, from a file to pictures: with all packages, and with few."""

from pathlib import Path
from typing import Any

import numpy as np

from offnominal.calibration import choose_threshold
from offnominal.exchange import coco
from offnominal.explain.match import Explanation
from offnominal.explain.picture import draw
from offnominal.images import content_digest, read_image, read_picture
from offnominal.metrics.regions import find_defects
from offnominal.pictures import save_picture
from offnominal.prediction import Prediction
from offnominal.report.inspection import write_inspection
from offnominal.report.page import Card, show
from offnominal.rotations import rotate_image
from offnominal.scoring import Scores, anomaly_map, network_map
from offnominal.views import turned_back, whole_view

NORMAL = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def work(folder: Path) -> dict[str, Any]:
    """Digests and values of everything, by name, from the pictures in a folder."""
    image = read_image(folder / "part.png")
    deep = read_picture(folder / "deep.png", "1,99")
    assert deep.bits == 16
    view = whole_view(image, 64, 8, "short", *NORMAL)
    turned = rotate_image(image, 45)
    back = turned_back(whole_view(turned, 64, 8, "short", *NORMAL), image.shape[:2], 45)
    patches = np.random.default_rng(0).random((8, 12), dtype=np.float32)
    patches[2:5, 4:7] += 2
    patches[3, 5] = 0.1
    heat = anomaly_map(patches, (image.shape[0], image.shape[1]), 2.0)
    threshold = choose_threshold(np.arange(1.0, 12), 0.01)
    assert threshold is not None
    scores = Scores(patches)
    prediction = Prediction("part.png", 2.5, heat, scores, image, threshold.value, 1.2, 0.05)
    save_picture(folder / "overlay.png", prediction.picture())
    card = Card("part", "scratch", "hit", 2.5, 2.0, 0.05, image, heat > 1, image, image)
    row = {**prediction.to_dict(), "name": str(folder / "part.png"), "error": None}
    row |= {"overlay": "overlay.png", "thumbnail": "overlay.png", "seconds": 0.1}
    page = write_inspection(folder, [row]).read_text("utf-8")
    defects = find_defects(heat, heat > 1.2)
    assert defects is not None
    pictures = {
        "image": image,
        "deep": deep.pixels,
        "pixels": view.pixels,
        "turned": turned,
        "heat": heat,
        "network map": network_map(patches, 14),
        "caption": prediction.picture(),
        "thumbnail": prediction.thumbnail(),
        "overlay": prediction.overlay(),
        "explanation": draw(Explanation(prediction, (), {})),
        "again": read_image(folder / "overlay.png"),
    }
    return {name: content_digest(one) for name, one in pictures.items()} | {
        "back": back.frame.tolist(),
        "threshold": threshold.value,
        "regions": coco([prediction]),
        "areas": defects.areas.tolist(),
        "shown": show(card)["pictures"],
        "page": len(page),
    }
