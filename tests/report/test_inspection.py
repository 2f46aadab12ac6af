"""The results page, in a real browser where there is one, and the opinions that it saves."""

import html
import json
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from tests.cli.conftest import offnominal, passed
from tests.report.browser import chromium

from offnominal import AnomalyDINO
from offnominal.captions import Heat, Verdict, captioned, layout, thumbnail
from offnominal.opinions import sort_out
from offnominal.report.drift import drift
from offnominal.report.inspection import write_inspection
from offnominal.report.page import write

WILD = "a <b>&'\"#%?.png"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty good references, and a lot of 12 good and 4 bad parts in two folders, inspected."""
    root = tmp_path_factory.mktemp("inspection")
    rng = np.random.default_rng(0)
    for number in range(24):
        place = root / ("good" if number < 8 else "lot/day 1" if number < 16 else "lot/day 2")
        place.mkdir(parents=True, exist_ok=True)
        part = rng.integers(90, 110, (64, 80, 3)).astype(np.uint8)
        if number in (9, 12, 17):
            part[20:40, 30:50] = (20, 20, 240)
        file = place / (WILD if number == 12 else f"{number:03d}.png")
        cv2.imwrite(str(file), part)
        os.utime(file, (1.8e9 + 60 * number,) * 2)
    (root / "lot" / "broken.png").write_bytes(b"no picture")
    AnomalyDINO(backbone="builtin", rotations="none").fit(root / "good").save(root / "part.offn")
    done = offnominal("predict", "part.offn", "lot", "-o", "results", cwd=root)
    assert done.returncode == 3
    assert f"open {Path('results', 'index.html')}" in done.stderr
    return root


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "results/results.jsonl").read_text().splitlines()]


def data(page: Path) -> Any:
    return json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text())[0])


def run(page: Path, folder: Path, script: str) -> Any:
    """What a script of a page's reader gives, in the real browser, from disk.

    The browser keeps what it stored for the next run with the same folder.
    """
    driven = page.with_name("driven.html")
    ends = f"<script>document.body.dataset.said = JSON.stringify((() => {{{script}}})());</script>"
    driven.write_text(page.read_text().replace("</body>", ends + "</body>"))
    profile = f"--user-data-dir={folder / 'profile'}"
    dom = chromium(profile, "--virtual-time-budget=4000", "--dump-dom", driven.as_uri()).stdout
    driven.unlink()
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, "the page's script did not run to its end"
    return json.loads(html.unescape(found[1]))


@pytest.mark.slow
def test_the_page_counts_what_the_rows_say_and_links_what_is_there(results: Path) -> None:
    page = results / "results" / "index.html"
    scored = [row for row in rows(results) if "score" in row]
    rejected = sum(row["is_anomalous"] for row in scored)
    text = page.read_text()
    assert f"16 images: {rejected} rejected, {16 - rejected} passed." in text
    assert "1 more could not be read, and were not inspected" in text
    assert "broken.png" in text
    assert WILD not in text, "names are escaped"
    found = data(page)
    assert len(found["parts"]) == 16
    assert found["timed"] is True
    for part in found["parts"]:
        for link in part[2:5]:
            assert (page.parent / unquote(link)).is_file(), link
        whole = cv2.imread(str(page.parent / unquote(part[4])))
        assert whole.shape[1::-1] == tuple(found["layouts"][part[10]][:2])
    assert any(unquote(part[2]).endswith(WILD) for part in found["parts"])
    # Nothing that the page is made of is taken for a part.
    assert "no images" in offnominal_error("predict", "part.offn", "results", cwd=results)


def offnominal_error(*words: object, cwd: Path) -> str:
    done = offnominal(*words, cwd=cwd)
    assert done.returncode == 2
    return done.stderr


def test_classes_have_a_row_each(results: Path, tmp_path: Path) -> None:
    scored = [row | {"name": row["image"]} for row in rows(results) if "score" in row]
    rejected = [row for row in scored if row["is_anomalous"]]
    for row, kind in zip(rejected, ("dent", "<b>dent", "dent"), strict=False):
        row |= {"kind": kind, "kinds": {kind: 0.75}}
    text = write_inspection(tmp_path, scored).read_text()
    found = data(tmp_path / "index.html")
    assert found["classes"] == ["<b>dent", "dent"]
    assert sorted(part[15] for part in found["parts"] if part[15]) == ["<b>dent", "dent", "dent"]
    assert re.search(r">dent</th><td[^>]*>2</td><td[^>]*>75 %</td>", text)
    assert "(no class)" in text
    assert "<b>dent" not in text
    assert "Rejected, by class" not in (results / "results" / "index.html").read_text()


ACT = """
var said = [document.querySelector("#pick output").textContent];
var texts = function (selector) {
  return Array.from(document.querySelectorAll(selector)).map(function (one) {
    return one.textContent;
  });
};
var files = function () { return texts("#parts .file"); };
var scores = texts("#parts .values > span:not(.file)").map(function (text) {
  return +text.replace("score", "");
});
said.push(scores.length, scores.every(function (s, at) { return !at || s <= scores[at - 1]; }));
var set = function (name, value) {
  var form = document.getElementById("pick");
  form.elements[name].value = value;
  form.dispatchEvent(new Event("input", { bubbles: true }));
};
set("decision", "1"); said.push(files().length);
set("folder", "1"); said.push(files());
set("folder", ""); set("name", "<B>"); said.push(files());
set("name", ""); set("decision", "");
document.querySelector("#parts .open").click();
var dialog = document.getElementById("large"), press = function (key) {
  dialog.dispatchEvent(new KeyboardEvent("keydown", { key: key, bubbles: true }));
};
said.push(dialog.open);
var heat = dialog.querySelector(".heat img"), at = heat.style.left;
press(" "); said.push(heat.style.left !== at); press(" "); said.push(heat.style.left === at);
press("a"); press("r"); press("ArrowLeft"); press("r"); press("r"); press("a");
dialog.close();
said.push(document.getElementById("noted").textContent.indexOf("3 opinions") >= 0);
var saved = null, make = URL.createObjectURL;
window.Blob = function (parts) { saved = parts[0]; };
URL.createObjectURL = function () { return "#"; };
document.getElementById("save").click();
return [said, JSON.parse(saved)];
"""


@pytest.mark.slow
def test_a_reader_filters_sorts_enlarges_and_notes(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    said, saved = run(results / "results" / "index.html", tmp_path, ACT)
    rejects = sorted(
        (row for row in rows(results) if row.get("is_anomalous")), key=lambda row: -row["score"]
    )
    assert len(rejects) >= 3
    second = [f"day 2/{Path(r['image']).name}" for r in rejects if "day 2" in r["image"]]
    assert said == [
        *("16 of 16 images", 16, True, len(rejects), second, [f"day 1/{WILD}"]),
        *(True, True, True, True),
    ]
    assert saved["inspected"] == 16
    # It goes on after each; an opinion that is given again is taken back.
    assert [one["opinion"] for one in saved["opinions"]].count("reject") == 1
    (tmp_path / "opinions.json").write_text(json.dumps(saved))
    noted = sort_out([str(tmp_path / "opinions.json")])
    assert (noted.noted, noted.inspected) == (3, 16)
    assert all(Path(name).is_file() for name in [*noted.good, *noted.defective])
    # Opinions are there when the page is opened again, but not for other pictures of the names.
    page = results / "results" / "index.html"
    count = """return document.getElementById("noted").textContent.indexOf("3 opinions") >= 0;"""
    assert run(page, tmp_path, count) is True
    again = [row | {"name": row["image"]} for row in rows(results)]
    before = page.read_text()
    write_inspection(page.parent, [row | {"file": "1 bytes, 1 ns"} for row in again])
    assert run(page, tmp_path, "return document.getElementById('noted').hidden;") is True
    page.write_text(before)


@pytest.mark.slow
def test_opinions_teach_and_calibrate(results: Path, tmp_path: Path) -> None:
    lot = [row for row in rows(results) if "score" in row]
    opinions = [
        {
            "image": str(results / row["image"]),
            "opinion": "reject" if row["is_anomalous"] else "accept",
        }
        for row in lot
    ]
    opinions[0] |= {"image_bytes": os.fsencode(opinions[0].pop("image")).hex()}
    file = tmp_path / "opinions.json"

    def save(inspected: int) -> None:
        told = {"format": "offnominal opinions 1", "inspected": inspected, "opinions": opinions}
        file.write_text(json.dumps(told))

    save(len(lot))
    model = tmp_path / "new.offn"
    told = passed(offnominal("calibrate", results / "part.offn", file, "-o", model))
    bad = sum(one["opinion"] == "reject" for one in opinions)
    assert f"calibrated on {len(lot) - bad} good images" in told
    assert f"of {bad} defective images pass" in told
    assert "picked by their scores" not in told
    save(len(lot) + 1)
    told = passed(offnominal("calibrate", results / "part.offn", file, "-o", model))
    assert "picked by their scores" in told
    told = passed(offnominal("add", results / "part.offn", file, "-o", model))
    assert f"learned {len(lot) - bad} images" in told
    gone = {"image": "/gone.png", "opinion": "accept"}
    both = [{"image": str(file), "opinion": opinion} for opinion in ("accept", "reject")]
    for wrong, words in [
        ({"format": "offnominal opinions 1", "inspected": 1, "opinions": [gone]}, "gone.png"),
        ({"format": "offnominal opinions 1", "inspected": 1, "opinions": []}, "noted as good"),
        ({"format": "offnominal opinions 1", "inspected": 2, "opinions": both}, "as a reject"),
        ({"format": "other", "inspected": 1, "opinions": []}, "no file of opinions"),
        ([], "no file of opinions"),
    ]:
        file.write_text(json.dumps(wrong))
        told = offnominal_error("add", results / "part.offn", file, cwd=tmp_path)
        assert words in told, told


@pytest.mark.slow
def test_it_never_writes_over_a_page_of_the_user(results: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    words = ("predict", results / "part.offn", results / "lot/day 1", "-o", tmp_path)
    assert "no page of results" in offnominal_error(*words, cwd=results)
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
    assert not (tmp_path / "results.jsonl").exists()
    passed(offnominal(*words, "--save", "csv", cwd=results))
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
    # Nor over a page of another kind.
    write(tmp_path / "index.html", "cards.html.j2", "t", "h", columns=[], rows=[], key=[],
          looks=[], cards=[], decisions=[], pictures=[])  # fmt: skip
    kept = (tmp_path / "results.csv").read_bytes()
    assert "no page of results" in offnominal_error(*words, "--overwrite", cwd=results)
    assert (tmp_path / "results.csv").read_bytes() == kept, "refused before anything is taken away"


@pytest.mark.slow
def test_ten_thousand_parts_stay_quick(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = [
        {
            "name": f"/parts/{number % 7}/{number:05d}.png", "score": float(score),
            "threshold": 2.5, "is_anomalous": bool(score > 2.5), "p_value": 0.5, "height": 480,
            "width": 640, "regions": [], "file": f"9 bytes, {number + 10**9}000000000 ns",
            "thumbnail": f"thumbnails/{number}.jpg", "overlay": f"overlays/{number}.png",
        }
        for number, score in enumerate(rng.gamma(4, 0.3, 10_000))
    ]  # fmt: skip
    began = time.perf_counter()
    page = write_inspection(tmp_path, many)
    assert time.perf_counter() - began < 10  # seconds; one on a quiet machine
    assert page.stat().st_size < 3e6
    shown, spent = run(
        page,
        tmp_path,
        """var began = performance.now(), form = document.getElementById("pick");
        form.elements.sort.value = "near"; form.dispatchEvent(new Event("input"));
        return [document.querySelectorAll("#parts .card").length, performance.now() - began];""",
    )
    assert shown == 48
    assert spent < 5000  # milliseconds; some 50 on a quiet machine


def test_a_verdict_of_the_methods_own_needs_no_threshold(tmp_path: Path) -> None:
    """As a chat model's."""
    row = {"name": "/a.png", "score": 0.9, "threshold": None, "is_anomalous": True, "height": 9,
           "width": 9, "regions": [], "file": "9 bytes, 9 ns"}  # fmt: skip
    other = row | {"name": "/b.png", "is_anomalous": False}
    told = write_inspection(tmp_path, [row, other]).read_text()
    assert "2 images: 1 rejected, 1 passed." in told
    told = write_inspection(tmp_path, [row | {"is_anomalous": None}]).read_text()
    assert "1 image scored. There is no threshold, so nothing is decided." in told
    told = write_inspection(tmp_path, [{"name": "/a.png", "error": "is damaged"}]).read_text()
    assert "0 images: 0 rejected, 0 passed." in told


def test_drift_is_told_from_chance_and_from_outliers() -> None:
    rng = np.random.default_rng(1)
    still = rng.normal(1, 0.1, 300)
    assert drift(list(still)) is None
    assert drift(list(still[:20])) is None
    still[-30:] += 5  # a tenth: a lot of rejects, not a drift of the line
    assert drift(list(still)) is None
    found = drift(list(rng.normal(1, 0.1, 300) + np.linspace(0, 0.3, 300)))
    assert found is not None
    assert found.last > found.first + 0.1
    assert found.images == 100
    assert drift([1.0] * 300) is None


@pytest.mark.parametrize("size", [(64, 80), (600, 900), (40, 1600), (1600, 40)])
def test_a_picture_says_what_came_of_the_image(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, np.uint8)
    image[: size[0] // 2] = (10, 200, 30)
    ramp = np.linspace(0, 2, size[1], dtype=np.float32)[None].repeat(size[0], 0)
    heat = Heat(ramp, 0.5, 1.5, 1.0)
    plan = layout(*size)
    pictures = [
        captioned(image, heat, Verdict(rejected, 2.0, limit), "x" * 300)
        for rejected, limit in ((True, 1.0), (False, 3.0), (None, None))
    ]
    assert {picture.shape for picture in pictures} == {(plan.size[1], plan.size[0], 3)}
    colours = []
    for picture in pictures:
        left, top, wide, high = plan.image
        assert left + wide < plan.heat[0]
        assert plan.heat[0] + plan.heat[2] < plan.size[0]
        inside = picture[top + high // 4, left + wide // 2]
        assert np.abs(inside.astype(int) - (10, 200, 30)).max() < 3
        colours.append(tuple(picture[plan.text, plan.text]))
    assert len(set(colours)) == 3, "the verdict's ground"
    small = thumbnail(image, heat)
    assert small.shape[1] % 2 == 0
    assert max(small.shape[0], small.shape[1] // 2) <= 208


def test_results_go_into_a_folder_of_their_own(results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    part = results / "part.offn"
    for words, told in [
        (("lot", "-o", tmp_path / "file"), "is a file; name a folder"),
        (("lot", "-o", "results"), "--overwrite starts afresh"),
        (("lot/day 1", "-o", "lot/day 1"), "name a folder of its own"),
        (("lot", "--save", "overlay"), "needs a folder to write into"),
    ]:
        assert told in offnominal_error("predict", part, *words, cwd=results)
