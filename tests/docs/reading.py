"""Every command line and every block of Python that the pages show, in their order."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """A command line without its prompt, or a block of Python."""

    page: str
    kind: str  # `console` or `python`
    text: str
    fails: bool = False  # the page shows an error of it


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(block: str) -> dict[str, bool]:
    """What a reader would type of a block, and whether an error is shown of it."""
    lines = block.replace("\\\n", " ").splitlines()
    return {
        re.sub(r"\s+# .*$", "", re.sub(" +", " ", line[2:])).strip(): below.startswith("error:")
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("$ ")
    }


def pieces(page: Path) -> list[Piece]:
    """All that a page shows to be run."""
    name = page.relative_to(ROOT).as_posix()
    found = []
    for language, text in blocks(page):
        if language == "console":
            found += [Piece(name, language, *each) for each in commands(text).items()]
        elif language == "python":
            found.append(Piece(name, language, text))
    return found


ALL = [piece for page in PAGES for piece in pieces(page)]
