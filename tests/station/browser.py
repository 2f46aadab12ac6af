"""A real browser for tests of pages, which remembers whatever went wrong in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
SCREEN = {"width": 1024, "height": 600}  # the smallest that an operator's page is made for


@contextmanager
def browsing(patience: float = 240) -> Iterator[Any]:
    """A Chromium whose pages wait ``patience`` seconds for what they are told to wait for.

    Skips the test where there is no Playwright, or no Chromium.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        # Chromium's own camera is a picture that moves; nobody is asked whether it may be used.
        camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
        options = ["--no-sandbox", *camera]
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=options)
        try:
            context = browser.new_context(viewport=SCREEN)
            context.set_default_timeout(1000 * patience)
            yield context
        finally:
            browser.close()


def watched(context: Any) -> list[str]:
    """What goes wrong on a context's pages from now on.

    That is every error on the console, which violations of the Content-Security-Policy are among,
    every exception that no script caught, every dialog, and every answer of 400 and more.
    """
    wrong: list[str] = []

    def dialog(one: Any) -> None:
        wrong.append(f"dialog: {one.message}")
        one.dismiss()

    def console(one: Any) -> None:
        if one.type in ("error", "warning"):
            wrong.append(f"{one.type}: {one.text}")

    def response(one: Any) -> None:
        if one.status >= 400:
            wrong.append(f"{one.status}: {one.request.method} {one.url}")

    context.on("dialog", dialog)
    context.on("console", console)
    context.on("weberror", lambda one: wrong.append(str(one.error)))
    context.on("response", response)
    return wrong


def upload(name: str, content: bytes) -> dict[str, object]:
    """A file as a browser's chooser takes it."""
    return {"name": name, "mimeType": "image/png", "buffer": content}


def set_up(page: Any, address: str, code: str, product: str) -> None:
    """The first two steps: an administrator's account, and a product with a name."""
    page.goto(address)
    page.get_by_label("Set-up code").fill(code)
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Make the account").click()
    page.get_by_label("Name", exact=True).fill(product)
    page.get_by_role("button", name="Go on").click()


def show_good_parts(page: Any, files: list[Any]) -> None:
    """The third step; ``files`` are paths or what :func:`upload` gives."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files").click()
    chooser.value.set_files(files)


def learn_with(page: Any, network: str) -> None:
    """Have it learn by a network, and wait for the page that says what it learned."""
    page.locator("summary", has_text="Network").click()
    page.locator("select[name=backbone]").select_option(network)
    page.get_by_role("button", name="Learn from these pictures").click()
    page.locator("[data-job]").wait_for()
    page.reload()  # it goes on
    page.get_by_role("heading", name="What it learned").wait_for()


def is_whole(image: Any) -> None:
    """Wait until a picture is there, and not only its place."""
    image.scroll_into_view_if_needed()
    image.page.wait_for_function(
        "image => image.complete && image.naturalWidth > 0", arg=image.element_handle()
    )
