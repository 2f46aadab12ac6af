"""The list of tests that only a release waits for names tests that there are."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTED = (ROOT / "tests" / "release.txt").read_text().splitlines()


@pytest.mark.parametrize("name", sorted({line.partition("[")[0] for line in LISTED}))
def test_it_is_there(name: str) -> None:
    file, *inner = name.split("::")
    assert f"def {inner[-1]}(" in (ROOT / file).read_text()


def test_each_is_listed_once_and_in_order() -> None:
    assert sorted(set(LISTED)) == LISTED
