"""The HTML page, opened in a real browser where there is one."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests.report.browser import chromium

from offnominal.datasets.synthetic import DEFECTS, LOOKS, draw_defective, draw_good, object_mask
from offnominal.errors import OptionError
from offnominal.report import Card, Scores, write_page

pytestmark = pytest.mark.slow


def heat_of(mask: npt.NDArray[np.bool_], seed: int) -> npt.NDArray[np.float32]:
    """Stand in for an anomaly map: the blurred truth over soft noise."""
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.random((12, 12), np.float32), mask.shape[::-1]) * 0.25
    near = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 7)
    return np.clip(near / max(float(near.max()), 1e-6) * 0.8 + noise, 0, 1)


def a_card(look: str, defect: str, index: int, threshold: float = 2.4) -> Card:
    if defect == "good":
        image, mask = draw_good(look, 3, index, "test"), None
        heat = heat_of(np.zeros(image.shape[:2], np.bool_), index) * 0.9
        score = 1.6 + 0.3 * (index % 4)
    else:
        image, mask, _ = draw_defective(look, 3, index, defect)
        heat = heat_of(mask, index)
        score = 2.2 + 0.6 * (index % 5)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    overlay = cv2.addWeighted(image, 0.55, np.ascontiguousarray(colours), 0.45, 0)
    names = ("good", "false alarm") if defect == "good" else ("miss", "hit")
    return Card(
        category=look,
        defect=defect,
        outcome=names[score >= threshold],
        score=score,
        threshold=threshold,
        p_value=0.02 if defect != "good" else float("nan"),
        image=image,
        truth=mask,
        map_picture=np.ascontiguousarray(colours),
        overlay=overlay,
        name=f"{index:03d}.png",
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Looks of twelve cards, as the demonstration writes."""
    cards = []
    for look in LOOKS:
        kinds = ["good", "good", "good", *DEFECTS[look], *DEFECTS[look]][:12]
        cards += [a_card(look, kind, index) for index, kind in enumerate(kinds)]
    rng = np.random.default_rng(0)
    scores = [
        Scores(look, list(rng.normal(1.7, 0.3, 24)), list(rng.normal(3.4, 0.8, 24)), 2.4)
        for look in LOOKS
    ]
    columns = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")
    summary: list[dict[str, object]] = [
        {"category": look, **{name: 0.9 + 0.01 * number for number, name in enumerate(columns)}}
        for look in LOOKS
    ]
    summary[-1]["aupro"] = float("nan")
    masks = [
        (f"Foreground of {look}: what is kept", np.uint8(255) * object_mask(look, 3, 0, "test"))
        for look in LOOKS
    ]
    return write_page(
        tmp_path_factory.mktemp("page") / "report.html",
        "Offnominal on <synthetic> parts",
        summary,
        cards,
        scores=scores,
        decisions={
            "part": ["Foreground mask: on: the object covers 31 % of the frame", "Rotations: 8"],
            "fabric": ["Foreground mask: off: the object fills the frame", "Rotations: none"],
        },
        pictures=masks,
    )


class Seen(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_it_is_one_small_file_without_outside_references(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 6e6
    assert [entry.name for entry in page.parent.iterdir()] == ["report.html"]
    seen = Seen()
    seen.feed(text)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value[:80])
    assert "url(" not in text
    assert "@import" not in text


def test_every_picture_has_words(page: Path) -> None:
    seen = Seen()
    seen.feed(page.read_text(encoding="utf-8"))
    pictures = [attributes for tag, attributes in seen.tags if tag == "img"]
    good, defective = 3 * len(LOOKS), 9 * len(LOOKS)
    assert len(pictures) == 3 * good + 4 * defective + len(LOOKS)
    assert all(attributes.get("alt") for attributes in pictures)
    plots = [attributes for tag, attributes in seen.tags if tag == "svg"]
    assert len(plots) == len(LOOKS)
    assert all(attributes.get("aria-label") for attributes in plots)


def test_text_is_escaped_and_undefined_figures_say_so(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "on &lt;synthetic&gt; parts" in text
    assert "<synthetic>" not in text
    assert "not defined" in text
    assert ">nan<" not in text


def test_headline_and_plots_count_what_the_threshold_does(tmp_path: Path) -> None:
    scores = [Scores("bolt", [1.0, 2.0, 3.0], [3.0, 4.0], 3.0)]
    text = write_page(tmp_path / "a.html", "t", [], [], scores=scores).read_text(encoding="utf-8")
    assert "1 of 2 defective images were caught, and 0 of 3 good images were rejected." in text
    kinds = re.findall(r'<circle class="([a-z-]+)"', text)
    assert sorted(kinds) == ["good", "good", "good", "hit", "miss"], (
        "a score at the threshold passes"
    )


def test_an_unwritable_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be written"):
        write_page(tmp_path / "absent" / "a.html", "t", [], [], scores=[Scores("a", [1.0], [], 2)])


def test_the_pages_need_no_detector() -> None:
    modules = "offnominal.report.page", "offnominal.report.cards", "offnominal.report.gallery"
    code = (
        f"import sys, {', '.join(modules)}\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith('offnominal.detectors')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_browser_draws_it_and_runs_its_filter(page: Path, tmp_path: Path) -> None:
    folder = f"--user-data-dir={tmp_path / 'profile'}"
    # The page's own script unhides the filter: it ran, under the page's own content policy.
    result = chromium(folder, "--virtual-time-budget=4000", "--dump-dom", page.as_uri())
    assert re.search(
        r'<form class="filter"[^>]*aria-label="Show images by outcome">', result.stdout
    )
    for width, height in ((1280, 1600), (390, 844)):
        shot = tmp_path / f"{width}.png"
        chromium(folder, f"--window-size={width},{height}", f"--screenshot={shot}", page.as_uri())
        with Image.open(shot) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[:2] == (height, width)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
