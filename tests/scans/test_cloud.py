"""Clouds as files: what is in the PLY, and the page that turns them, in a real browser."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.browser import chromium

from offnominal.errors import OptionError
from offnominal.paths import is_own
from offnominal.report.clouds import MOST, write_cloud_page
from offnominal.scans.cloud import write_ply
from offnominal.scans.scan import Scan


def ball(size: int = 40, colour: bool = True) -> tuple[Scan, np.ndarray]:
    """Half a ball of 20 mm before the camera, its left half anomalous."""
    x, y = np.meshgrid(*[np.linspace(-0.025, 0.025, size)] * 2)
    inside = 0.02**2 - x * x - y * y
    z = np.where(inside > 0, 0.3 - np.sqrt(np.maximum(inside, 0)), np.nan)
    points = np.dstack([x, y, z]).astype(np.float32)
    points[np.isnan(z)] = np.nan
    grey = np.full((size, size, 3), 120, np.uint8)
    return Scan(points, grey if colour else None), np.where(x < 0, 1, 0).astype(np.float32)


def rows_of(path: Path) -> tuple[list[str], np.ndarray]:
    """A PLY read by nothing but its own header."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [(w[2], kinds[w[1]]) for w in map(str.split, lines) if w[0] == "property"]
    return lines, np.frombuffer(body, fields)


def test_a_cloud_is_read_back(tmp_path: Path) -> None:
    scan, scores = ball()
    assert write_ply(tmp_path / "a.ply", scan.points, scores, scan.colour, (0, 1)) == int(
        scan.measured.sum()
    )
    lines, rows = rows_of(tmp_path / "a.ply")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert f"element vertex {scan.measured.sum()}" in lines
    assert is_own(tmp_path / "a.ply")
    np.testing.assert_array_equal(rows["x"], scan.points[scan.measured][:, 0])
    np.testing.assert_array_equal(rows["score"], scores[scan.measured])
    good = rows["score"] == 0
    assert (rows["red"][good] == 120).all()
    assert (rows["red"][~good].astype(int) > rows["blue"][~good] + 50).all(), "hot"
    with pytest.raises(OptionError, match="one for each"):
        write_ply(tmp_path / "b.ply", scan.points, scores[1:])


def test_a_large_scan_is_thinned_out_alike(tmp_path: Path) -> None:
    scan, scores = ball(320, colour=False)
    shown = write_cloud_page(tmp_path / "a.html", scan, scores, "a", "ok.", (0, 1), 0.5)
    text = (tmp_path / "a.html").read_text()
    assert MOST / 5 < shown < MOST
    assert f"{scan.measured.sum():,} points, of which {shown:,} are shown" in text
    found = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])
    places = np.frombuffer(base64.b64decode(found["points"]), "<u2").reshape(-1, 3)
    there = places * found["step"] + found["at"]
    assert np.abs(np.hypot(*there.T[:2]).max() - 0.02) < 1e-3
    assert np.abs(np.linalg.norm(there - [0, 0, 0.3], axis=1) - 0.02).max() < 1e-5
    assert len(text) < 12 * 4 / 3 * shown + 60_000
    assert "http" not in re.sub(r"<meta http-equiv|base64", "", text), "needs no network"


DRIVE = """
var canvas = document.getElementById("cloud"), pen = canvas.getContext("2d");
function hot() {
  var all = pen.getImageData(0, 0, canvas.width, canvas.height).data, left = 0, many = 0;
  for (var i = 0; i < all.length; i += 4) {
    if (all[i + 3] && all[i] > all[i + 2] + 40) { left += (i / 4) % canvas.width; many++; }
  }
  return [many, many ? left / many / canvas.width : 0];
}
function send(kind, x, y) {
  var what = { pointerId: 1, clientX: x, clientY: y, buttons: 1, bubbles: true };
  canvas.dispatchEvent(new PointerEvent(kind, what));
}
window.requestAnimationFrame = function (draw) { draw(); };
var said = [hot()];
send("pointerdown", 300, 300);
for (var step = 0; step < 40; step++) send("pointermove", 300 + 10 * step, 300);
send("pointerup", 700, 300);
said.push(hot());
document.querySelector("[name=hot]").click();
said.push(hot());
canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "0" }));
document.querySelector("[name=hot]").click();
said.push(hot());
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -600 }));
said.push(hot());
var found = { hot: said, surfaces: document.querySelector("[name=surface]").length };
document.body.dataset.said = JSON.stringify(found);
"""


def test_the_page_turns_in_a_browser(tmp_path: Path) -> None:
    scan, scores = ball(100)
    page = tmp_path / "a.html"
    write_cloud_page(page, scan, scores, "<b>a", "Rejected.", (0, 1))
    page.write_text(page.read_text().replace("</body>", f"<script>{DRIVE}</script></body>"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dom = chromium(profile, "--window-size=1000,800", "--dump-dom", page.as_uri()).stdout
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, "the page's script did not run to its end"
    said: dict[str, Any] = json.loads(html.unescape(found[1]))
    first, turned, cold, again, nearer = said["hot"]
    assert first[0] > 3000
    assert first[1] < 0.47, "the left half is hot"
    assert abs(turned[1] - first[1]) > 0.03, "it was turned"
    assert cold[0] == 0
    assert again == first
    assert nearer[0] > 1.5 * first[0]
    assert said["surfaces"] == 2
