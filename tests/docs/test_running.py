"""What the pages show runs, page by page, in the order in which it stands there."""

import pytest
from tests.docs.reading import ALL
from tests.docs.running import Bench

# Another test runs the blocks of the pages that are all Python.
PAGES = sorted({piece.page for piece in ALL} - {"docs/python.md", "docs/python-results.md"})
# The demonstration is run once, for all pages that need it.
DEMO = {piece.page for piece in ALL if piece.text.startswith("offnominal demo")}
FIRST = [page for page in PAGES if page in DEMO or page < "docs/dn"]


def run(page: str, bench: Bench) -> None:
    for piece in ALL:
        if piece.page == page:
            bench.run(piece)


@pytest.mark.slow
class TestPagesUpToD:
    """Each class is one worker's."""

    @pytest.mark.parametrize("page", FIRST)
    def test_what_a_page_shows_runs(self, page: str, bench: Bench) -> None:
        run(page, bench)


@pytest.mark.slow
class TestPagesFromD:
    @pytest.mark.parametrize("page", [page for page in PAGES if page not in FIRST])
    def test_what_a_page_shows_runs(self, page: str, bench: Bench) -> None:
        run(page, bench)
