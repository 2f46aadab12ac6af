"""What the pages show is what there is: every command line parses, every name has its place."""

import html
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pytest
from tests.cli.conftest import offnominal as run
from tests.docs.reading import ALL, PAGES, ROOT, blocks, commands
from tests.docs.running import FILES, GIVEN, NOT_RUN, QUICKER, install
from tests.report.browser import chromium

import offnominal
from offnominal.cli.command import named
from offnominal.cli.option import method_options

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(program: str) -> list[tuple[str, list[str]]]:
    """Page and words of each call of a program, up to where the shell goes on."""
    found = []
    for piece in ALL:
        if piece.kind != "console":
            continue
        text = re.sub(r"^(?:\w+=\S+ )*(?:\S+/bin/)?", "", piece.text)
        words = shlex.shlex(text, posix=True, punctuation_chars="|")
        words.whitespace_split = True
        for piped, part in groupby(words, lambda word: word in ("|", "||")):
            call = list(part)
            if not piped and call[0] == program:
                found.append((piece.page, call[1:]))
    return found


@pytest.mark.slow
def test_every_command_line_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options, choices, and options of methods: all but what they would do."""
    monkeypatch.syspath_prepend(str(tmp_path))
    install(ROOT / "docs/your-own-method.md", tmp_path)
    monkeypatch.setattr("typer.core.TyperCommand.invoke", lambda self, ctx: None)
    calls = lines("offnominal")
    assert len(calls) > 150
    wrong = []
    for page, words in {" ".join(words): (page, words) for page, words in calls}.values():
        if words == ["--install-completion"]:  # it would do so at once
            continue
        for folder in named(words, "--data"):  # is looked for before the rest is read
            (tmp_path / folder).mkdir(exist_ok=True)
        done = run(*words, cwd=tmp_path)
        if done.returncode:
            wrong.append(f"{page}: {shlex.join(words)}\n{done.stderr}")
        wrong += [f"{page}: {shlex.join(words)}: --set {each}" for each in unknown(words)]
    assert not wrong, "\n".join(wrong)


def unknown(words: Sequence[str]) -> list[str]:
    """What `--set` names and no method of the line has."""
    methods = [one for each in named(words, "--method", many=True) for one in each.split(",")]
    known = {option.name for one in methods or ["anomalydino"] for option in method_options(one)}
    return [
        each
        for each in named(words, "--set")
        if each.partition("=")[0].rpartition(":")[2].replace("-", "_") not in known
    ]


def test_what_is_not_run_stands_in_the_pages() -> None:
    commands = [piece.text for piece in ALL if piece.kind == "console"]
    code = [piece.text for piece in ALL if piece.kind == "python"]
    for start in NOT_RUN:
        assert any(text.startswith(start) for text in commands), start
    used = set()
    for text in (*commands, *code):
        for pattern, instead in QUICKER:
            changed = re.sub(pattern, instead, text)
            used |= {pattern} if changed != text else set()
            text = changed
    assert {pattern for pattern, _ in QUICKER} - used == set()
    assert {*GIVEN, *FILES} <= {piece.page for piece in ALL if piece.kind == "python"}


def test_targets_extras_and_scripts_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page, words in lines("make"):
        assert f"\n{words[0]}:" in makefile, (page, words)
    told = " ".join(page.read_text() for page in PAGES)
    for extras in re.findall(r"['\"][\w.-]*\[([a-z0-9,]+)\]['\"]", told):
        assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys(), extras
    for page, words in lines("python"):
        if words[0] != "-m":
            source = (ROOT / words[0]).read_text()
            missing = [word for word in words[1:] if word[:2] == "--" and word not in source]
            assert not missing, (page, words, missing)


def test_every_public_name_has_its_place_in_the_reference() -> None:
    told = [
        name.rpartition(".")[2]
        for page in (ROOT / "docs/api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(set(told)) == sorted(told)
    assert {*offnominal.__all__} - {"__version__"} - {*told} == set()


def test_every_page_is_in_the_navigation() -> None:
    told = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]]
    assert not [page for page in pages if f": {page}\n" not in told]


def test_nobody_is_sent_to_an_index_that_has_no_offnominal() -> None:
    for path in PAGES:
        told = re.sub(r"(?m)^error: .*$", "", path.read_text())
        assert not re.search(r"pip install ['\"]?offnominal\b(?!-)", told), path
    # An extra of what is installed already is looked for there.
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"pip install ['\"]?offnominal\b(?![-[])", path.read_text()), path


def test_links_of_the_readme_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text()):
            assert (ROOT / link).exists(), (name, link)


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {offnominal.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"offnominal-{offnominal.__version__}-" in (ROOT / "docs/install.md").read_text()


@pytest.mark.slow
def test_what_is_copied_are_the_commands(tmp_path: Path) -> None:
    """The button's script over every block of the pages, in a browser."""
    shown = [text for page in PAGES for name, text in blocks(page) if name == "console"]
    open_, close = '<div class="language-console"><pre><code>', "</code></pre></div>"
    parts = [f"{open_}{html.escape(text, quote=False)}{close}" for text in shown]
    script = (ROOT / "docs/extra/copy.js").as_uri()
    page = tmp_path / "page.html"
    page.write_text(f'<meta charset="utf-8">{"".join(parts)}<script src="{script}"></script>')
    told = chromium("--dump-dom", page.as_uri()).stdout
    copied = re.findall(r'data-copy="([^"]*)"', told)
    assert len(copied) == len(shown)
    for text, copy in zip(shown, copied, strict=True):
        typed = re.sub(r" +", " ", html.unescape(copy).replace("\\\n", " ")).splitlines()
        assert [line.strip() for line in typed] == [*commands(text)]


@pytest.mark.slow
def test_the_site_is_searched_from_a_disk_and_fetches_nothing(tmp_path: Path) -> None:
    """Built strictly, with the reference, as `make docs` does."""
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env=None)
    fetched = re.compile(r'<(?:script|img|iframe|link)[^>]* (?:src|href)="(https?:[^"]+)"')
    for page in tmp_path.rglob("*.html"):
        assert not fetched.findall(page.read_text(encoding="utf-8")), page
    page = tmp_path / "api" / "base.html"
    told = chromium(
        "--virtual-time-budget=10000", "--dump-dom", f"{page.as_uri()}?q=coreset"
    ).stdout
    assert re.search(r"\d+ matching documents", told)
    assert "coreset.html" in told
