"""A real browser, where there is one."""

import shutil
import subprocess

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def chromium(*options: str) -> subprocess.CompletedProcess[str]:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    return subprocess.run(
        [BROWSER, *fixed, *options], capture_output=True, text=True, timeout=120, check=True
    )
