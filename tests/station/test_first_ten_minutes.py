"""The first ten minutes, played in a browser: from the code that is printed to a judged part."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from offnominal.station.access.setup import setup_code
from offnominal.station.app import create_app
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from tests.station.browser import (
    browsing,
    is_whole,
    learn_with,
    set_up,
    show_good_parts,
    upload,
    watched,
)
from tests.station.parts import bad_part, good_part

pytestmark = pytest.mark.slow
TEN_MINUTES = 600.0


class Served:
    """A station that listens on loopback, in a thread."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.app = create_app(Settings(folder=folder, port=self.port))
        self.station: Station = self.app.state.station
        told = {"port": self.port, "log_level": "warning", "timeout_graceful_shutdown": 1}
        self.server = uvicorn.Server(uvicorn.Config(self.app, host="127.0.0.1", **told))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> "Served":
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(60)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "station") as served:
        yield served


@pytest.fixture
def page() -> Iterator[Any]:
    with browsing() as context:
        wrong = watched(context)
        yield context.new_page()
    # A broken connection at the very end is what the last step is about.
    assert [one for one in wrong if "ERR_" not in one and "Failed to fetch" not in one] == []


def test_from_the_code_to_a_part_in_under_ten_minutes(served: Served, page: Any) -> None:
    begun = time.monotonic()
    set_up(page, served.address, setup_code(served.station), "Ring")
    pictures = [upload(f"good {n}.png", good_part(n)) for n in range(8)]
    show_good_parts(page, [*pictures, upload("notes.png", b"these are no pixels")])
    page.get_by_text("Pictures: 8").wait_for()
    page.get_by_text("notes.png:").wait_for()
    learn_with(page, "builtin")
    page.get_by_text("Up to 11 % of good parts may be rejected").wait_for()
    page.get_by_text("With 11 more good pictures it could promise 5 %").wait_for()
    assert page.locator("figure img").count() == 8
    is_whole(page.locator("figure img").first)

    page.get_by_role("link", name="Try it").click()
    page.locator("input[type=file]").set_input_files(
        [upload("bad.png", bad_part(50)), upload("good.png", good_part(51))]
    )
    page.locator("#tried li").nth(1).wait_for()
    assert sorted(page.locator("#tried .verdict").all_inner_texts()) == ["Good", "Reject"]

    page.get_by_role("button", name="Start inspecting").click()
    page.locator("body.operator:not(.waiting):not(.lost):not(.blind)").wait_for()
    page.keyboard.type("S-1001")  # as a scanner does
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#serial [name=serial]').value")
    page.get_by_role("button", name="Inspect a picture").click()
    page.locator("#hand input[type=file]").set_input_files([upload("part.png", bad_part(60))])
    page.locator(".judged.reject").wait_for()
    took = time.monotonic() - begun
    assert took < TEN_MINUTES
    assert page.get_by_text("REJECT", exact=True).is_visible()
    assert page.get_by_text("S-1001").is_visible()
    size = "[document.documentElement.scrollHeight, innerHeight]"
    assert len(set(page.evaluate(size))) == 1, "nothing is scrolled at 1024 x 600"
    for name in ("It is good", "It is bad"):
        assert page.get_by_role("button", name=name).bounding_box()["height"] >= 72

    page.wait_for_timeout(600)  # nobody judges a part that came this very moment
    page.keyboard.press("g")
    page.get_by_text("Ada said: good").wait_for()
    page.keyboard.press("u")
    page.get_by_text("Ada said: good").wait_for(state="detached")

    # The station is gone: nothing green may stay in sight.
    page.locator("body:not(.lost)").wait_for()
    served.server.should_exit = True
    served.thread.join(60)
    page.get_by_text("NO CONNECTION").wait_for(timeout=15_000)
    assert not page.locator(".judged").is_visible()


def test_good_parts_are_dropped_or_taken_by_this_devices_camera(served: Served, page: Any) -> None:
    set_up(page, served.address, setup_code(served.station), "Ring")
    kept, content = page.locator("#kept li"), list(good_part(1))
    dropped = page.evaluate_handle(
        """([content]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(content)], "good.png", {type: "image/png"}));
            return held;
        }""",
        [content],
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": dropped})
    kept.nth(0).wait_for()
    page.get_by_role("button", name="Use this device's camera").click()
    page.wait_for_function("() => document.querySelector('#camera video').videoWidth > 0")
    page.get_by_role("button", name="Take a picture").click()
    kept.nth(1).wait_for()
    is_whole(kept.nth(0).locator("img"))
    is_whole(kept.nth(1).locator("img"))
    page.get_by_role("button", name="Close the camera").click()
    assert page.locator("#camera").is_hidden()
