"""The day of a line: from the code that is printed until the operator logs out, in one browser.

Processes, database, network and pictures are real: ``offnominal serve``, and magnetic tiles that
arrive as a line sends them, by ``POST /v1/inspect``.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.station.browser import (
    browsing,
    is_whole,
    learn_with,
    set_up,
    show_good_parts,
    watched,
)
from tests.station.test_serve import answers, serving, until

pytestmark = pytest.mark.slow

SCRIPT = "<script>document.title = 'broken'</script>"
IMAGE = "<img src=x onerror=alert(1)>"
FALSE_ALARM = "test/good/exp5_num_148007.jpg"  # of a kind that is not among the ten
FAINT = "test/break/exp1_num_116934.jpg"  # a defect that ten pictures are too few for
DEFECT = "test/break/exp1_num_194173.jpg"
LANGUAGES = {
    "de": ("AUSSCHUSS", "Ausschuss"),
    "zh": ("不合格", "不合格"),
    "ja": ("不合格 NG", "不合格"),
    "en": ("REJECT", "Reject"),
}


class Line:
    """The machine that sends parts, and looks at what the operator's page shows of each."""

    def __init__(self, address: str, token: str, page: Any, tiles: Path) -> None:
        self.address, self.page, self.tiles = address, page, tiles
        self.client = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=240)

    def send(self, part: str | bytes, serial: str) -> dict[str, Any]:
        content = part if isinstance(part, bytes) else (self.tiles / part).read_bytes()
        fields = {"product": "Tile", "serial": serial, "deadline": "120"}
        url = f"{self.address}v1/inspect"
        answer = self.client.post(url, data=fields, files={"image": ("part.jpg", content)})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def inspect(self, part: str | bytes, serial: str, verdict: str) -> dict[str, Any]:
        """Send a part; the operator's page, which is open, shows it by word, class and colour."""
        found = self.send(part, serial)
        assert found["verdict"] == verdict, (found["reason"], found["score"])
        self.page.locator(f".judged.{verdict}").get_by_text(serial, exact=True).wait_for()
        word = {"good": "GOOD", "reject": "REJECT", "not-inspected": "NOT INSPECTED"}[verdict]
        judged = self.page.locator(".judged")
        assert judged.locator(".word").inner_text().strip() == word
        colour = "one => getComputedStyle(one).backgroundColor"
        green = self.page.locator(".say .good").evaluate("one => getComputedStyle(one).color")
        assert (judged.evaluate(colour) == green) == (verdict == "good")
        return found

    def operator(self) -> None:
        self.page.goto(f"{self.address}operator")
        self.page.locator("body.operator:not(.waiting):not(.lost):not(.blind)").wait_for()


@pytest.fixture
def context() -> Iterator[Any]:
    with browsing() as context:
        yield context


def test_the_day_of_a_line(tiles: Path, tmp_path: Path, context: Any) -> None:
    wrong, page = watched(context), context.new_page()
    with serving(tmp_path / "station", "--threads", "1") as (_, address, told):
        until(lambda: answers(address))
        code = told.rpartition(" ")[2].strip()
        set_up(page, address, code, "Tile")
        _teach(page, sorted((tiles / "train" / "good").iterdir())[:10], tiles)
        line = Line(address, _token(page, address), page, tiles)
        alarm = _parts_arrive(line)
        _label(line, alarm)
        _learn_away(line, alarm)
        _move_the_threshold(line)
        _roll_back(line)
        _speak(line)
        _attack_by_names(line)
        assert wrong == []
        _attack_from_outside(context, address)
        page.goto(f"{address}history")
        wrong.clear()  # of what was refused
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("button", name="Log in").wait_for()
        page.goto(f"{address}history/{alarm['id']}")
        page.get_by_role("button", name="Log in").wait_for()
        assert wrong == []


def _teach(page: Any, good: list[Path], tiles: Path) -> None:
    show_good_parts(page, good)
    page.get_by_text("Pictures: 10").wait_for()
    learn_with(page, "efficientnet_lite2")
    page.get_by_text("Up to 9.1 % of good parts may be rejected").wait_for()
    assert page.locator("figure img").count() == 10
    is_whole(page.locator("figure img").first)
    page.get_by_role("link", name="Try it").click()
    tried = [tiles / DEFECT, tiles / "test/good/exp1_num_127649.jpg"]
    page.locator("input[type=file]").set_input_files(tried)
    page.locator("#tried li").nth(1).wait_for()
    assert sorted(page.locator("#tried .verdict").all_inner_texts()) == ["Good", "Reject"]
    page.get_by_role("button", name="Start inspecting").click()
    page.get_by_text("No part has come yet").wait_for()


def _token(page: Any, address: str) -> str:
    page.goto(f"{address}tokens")
    page.get_by_label("What it is for").fill("the line")
    page.get_by_label("send pictures to be judged").check()
    page.get_by_role("button", name="Make the token").click()
    token: str = page.locator("code.token").inner_text()
    page.goto(f"{address}tokens")
    assert token not in page.content()
    return token


def _parts_arrive(line: Line) -> dict[str, Any]:
    line.operator()
    for number, part in enumerate(sorted((line.tiles / "test/good").iterdir())[:3]):
        line.inspect(f"test/good/{part.name}", f"G-{number}", "good")
    line.inspect(DEFECT, "D-0", "reject")
    line.inspect("test/break/exp2_num_284506.jpg", "D-1", "reject")
    line.inspect(FAINT, "F-0", "good")
    whole = (line.tiles / DEFECT).read_bytes()
    unreadable = line.inspect(whole[: len(whole) // 3], "U-0", "not-inspected")
    assert unreadable["reason"].startswith("unreadable")
    sink = io.BytesIO()
    with Image.open(io.BytesIO(whole)) as picture:
        picture.point(lambda value: value // 12).save(sink, "png")
    dark = line.inspect(sink.getvalue(), "U-1", "not-inspected")
    assert dark["reason"].startswith("dark")
    assert {unreadable["told"], dark["told"]} == {"reject"}
    alarm = line.inspect(FALSE_ALARM, "A-0", "reject")
    is_whole(line.page.locator(".seen img"))
    assert line.page.locator(".tally dd").all_inner_texts()[:3] == ["4", "3", "2"]
    assert len(line.page.locator(".last .verdict.good").all()) == 4
    size = "[document.documentElement.scrollHeight, innerHeight]"
    assert len(set(line.page.evaluate(size))) == 1, "nothing is scrolled at 1024 x 600"
    return alarm


def _label(line: Line, alarm: dict[str, Any]) -> None:
    page = line.page
    page.wait_for_timeout(600)  # nobody judges a part that came this very moment
    said = page.get_by_text("Ada said: good")
    page.get_by_role("button", name="It is good").click()
    said.wait_for()
    page.get_by_role("button", name="Undo").click()
    said.wait_for(state="detached")
    page.get_by_role("button", name="It is good").click()
    said.wait_for()
    page.goto(f"{line.address}history/{alarm['id']}")
    page.keyboard.press("m")
    page.locator("#picture[src$=heat]").wait_for()
    is_whole(page.locator("#picture"))
    assert page.locator(".facts .verdict").inner_text() == "Reject"  # beside it, not in its place
    assert page.get_by_role("button", name="It is good").get_attribute("aria-pressed") == "true"


def _learn_away(line: Line, alarm: dict[str, Any]) -> None:
    page = line.page
    page.goto(f"{line.address}review")
    page.get_by_role("button", name="Learn from the chosen ones").click()
    page.wait_for_url(re.compile(r"/products/1/versions/2$"))
    page.locator(".flips li").first.wait_for()
    flip = page.locator(".flips li").filter(has=page.locator(f"a[href='/history/{alarm['id']}']"))
    assert flip.locator(".verdict").all_inner_texts() == ["Reject", "Good"]
    ended = page.locator(".figures div").filter(has_text="False alarms that end")
    assert ended.locator("dd").inner_text() == "1"
    page.get_by_role("button", name="Make it live").click()
    page.locator("tr", has_text="Version 2").get_by_text("live", exact=True).wait_for()
    line.operator()
    assert line.inspect(FALSE_ALARM, "A-1", "good")["version"] == 2
    assert line.inspect(DEFECT, "D-9", "reject")["version"] == 2


def _move_the_threshold(line: Line) -> None:
    page = line.page
    missed = line.inspect(FAINT, "F-1", "good")
    page.goto(f"{line.address}history/{missed['id']}")
    page.keyboard.press("b")
    page.locator("button[data-key=b][aria-pressed=true]").wait_for()
    page.goto(f"{line.address}review")
    page.get_by_text("The live threshold passes 1 of 1 part").wait_for()
    page.get_by_role("link", name="Look at the threshold").click()
    handle, count = page.get_by_role("slider"), page.locator("#missed")
    before = float(handle.get_attribute("aria-valuenow"))
    assert count.inner_text() == "1"
    handle.focus()
    for _press in range(200):
        if count.inner_text() == "0":
            break
        page.keyboard.press("ArrowLeft")
    value = float(page.locator("#value").input_value())
    assert value < missed["score"] < before
    assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(value, rel=1e-4)
    page.get_by_role("button", name="See what would change").click()
    page.get_by_role("heading", name="Version 3 with the threshold").wait_for()
    found = page.locator(".figure").filter(has_text="misses that would be found")
    assert found.locator("b").inner_text() == "1"
    assert line.send(FAINT, "F-2")["verdict"] == "good"  # it is not live by that
    page.get_by_role("button", name="Let it judge from now on").click()
    page.locator("tr", has_text="Version 3").get_by_text("live", exact=True).wait_for()
    line.operator()
    now = line.inspect(FAINT, "F-3", "reject")
    assert (now["version"], now["threshold"]) == (3, pytest.approx(value))


def _roll_back(line: Line) -> None:
    page = line.page
    page.goto(f"{line.address}products/1/versions")
    page.get_by_role("button", name="Roll back to it Version 1").click()
    page.locator("tr", has_text="Version 1").get_by_text("live", exact=True).wait_for()
    line.operator()
    assert line.inspect(FAINT, "F-4", "good")["version"] == 1
    assert line.inspect(FALSE_ALARM, "A-2", "reject")["version"] == 1


def _speak(line: Line) -> None:
    page = line.page
    for language, (loud, plain) in LANGUAGES.items():
        page.goto(f"{line.address}history")
        page.locator("select[name=language]").select_option(language)
        page.locator(f"html[lang={language}]").wait_for()
        assert page.locator(".part .verdict").first.inner_text() == plain
        line.operator()
        assert page.locator("html").get_attribute("lang") == language
        assert page.locator(".judged .word").inner_text().strip() == loud


def _attack_by_names(line: Line) -> None:
    """What looks like a script is shown as it stands, wherever it is shown."""
    page = line.page
    page.goto(f"{line.address}products/new")
    page.get_by_label("Name", exact=True).fill(SCRIPT)
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("heading", name="Show good parts").wait_for()
    page.goto(f"{line.address}products")
    page.get_by_text(SCRIPT, exact=True).wait_for()
    line.operator()
    line.inspect(DEFECT, SCRIPT, "reject")
    found = line.inspect(DEFECT, IMAGE, "reject")
    for place in (f"history/{found['id']}", "history", "review", "shift", "audit", "health"):
        page.goto(f"{line.address}{place}")
        page.wait_for_load_state("load")
        if place.startswith("history"):
            page.get_by_text(IMAGE, exact=True).first.wait_for()
        assert "broken" not in page.title()
        assert page.locator("img[src=x]").count() == 0


def _attack_from_outside(context: Any, address: str) -> None:
    asked = context.request
    live = f"{address}products/1/versions/2/live"
    for forged in ({}, {"csrf": ""}, {"csrf": "A" * 43}):
        assert asked.post(live, form=forged, max_redirects=0).status == 403
    # Another site's page that sends a form in this browser, where Ada is logged in.
    site = context.new_page()
    site.set_content(f"<form method=post action='{live}'><button>A gift</button></form>")
    with site.expect_navigation() as went:
        site.get_by_role("button").click()
    assert went.value.status in (303, 401, 403)
    site.close()
    versions = asked.get(f"{address}products/1/versions").text()
    assert "live</span>" in versions[versions.index("Version 1</a>") :]

    stranger = context.browser.new_context()
    try:
        nobody = stranger.request
        for place in (
            "history/1",
            "pictures/1/image",
            "people",
            "products/1/versions",
            "audit.csv",
        ):
            answer = nobody.get(f"{address}{place}", max_redirects=0)
            assert answer.status in (303, 401), place
            assert b"JFIF" not in answer.body()
        assert nobody.post(f"{address}v1/inspect", data=b"x").status == 401
        assert nobody.post(live, form={"csrf": ""}, max_redirects=0).status in (303, 401, 403)
        page = stranger.new_page()
        page.goto(f"{address}operator/1")
        page.get_by_role("button", name="Log in").wait_for()
        policy = nobody.get(f"{address}login").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
    finally:
        stranger.close()
