"""The language of a request, and whether every sentence is there in all of them."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.pofile import read_po
from fastapi.testclient import TestClient

from offnominal.station import language
from offnominal.station.events import Events
from offnominal.station.inspection.reasons import REASONS, reason
from offnominal.station.inspection.sight import Usual, look
from offnominal.station.language import LANGUAGES, asked_for, ngettext, speaking
from offnominal.station.pages.charts import control_chart
from offnominal.station.pages.facts import measured, what_blinds
from offnominal.station.pages.shift import action_words
from offnominal.station.pages.words import why
from offnominal.station.state import State
from offnominal.station.station import Station
from offnominal.station.store.tables import User
from tests.station.rows import add, add_product

STATION = Path(language.__file__).parent
LOCALE = STATION / "locale"


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("de-AT,de;q=0.9,en;q=0.5", "de"),
        ("fr,en;q=0.3,ja;q=0.8", "ja"),
        ("zh-CN", "zh"),
        ("fr, it", "en"),
        ("de;q=0, zh;q=0.1", "zh"),
        ("de;q=much, ja", "ja"),
        ("", "en"),
    ],
)
def test_a_browser_says_what_its_reader_speaks(header: str, wanted: str) -> None:
    assert asked_for(header, "en") == wanted


def test_the_cookie_goes_before_the_browser_and_that_before_the_settings(
    client: TestClient,
) -> None:
    def spoken() -> str:
        page = client.get("/products", headers={"Accept-Language": accept}).text
        return re.search(r'<html lang="(\w+)"', page)[1]

    accept = "fr"
    assert spoken() == "en"
    accept = "ja"
    assert spoken() == "ja"
    client.cookies.set("language", "de")
    assert spoken() == "de"
    client.cookies.set("language", "xx")
    assert spoken() == "ja"


def test_a_language_is_chosen_for_the_account_as_well(client: TestClient) -> None:
    form = {"language": "de", "back": "/products", "csrf": client.headers["X-CSRF-Token"]}
    answer = client.post("/language", data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/products")
    assert "language=de" in answer.headers["set-cookie"]
    with client.app.state.station.database.reading() as session:
        assert session.scalar(sa.select(User.language)) == "de"


@pytest.mark.parametrize("place", ["//elsewhere.example", "https://elsewhere.example", "/\\else"])
@pytest.mark.slow
def test_choosing_leads_nowhere_else(stranger: TestClient, place: str) -> None:
    form = {"language": "ja", "back": place}
    answer = stranger.post("/language", data=form, follow_redirects=False)
    assert answer.headers["location"] == "/"


def test_plural_forms_are_the_languages_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, forms in {"de": ("%(n)s Teil", "%(n)s Teile"), "ja": ("部品 %(n)s 個",)}.items():
        lines = "".join(f'msgstr[{n}] "{form}"\n' for n, form in enumerate(forms))
        rule = Catalog(locale=code).plural_forms
        (tmp_path / f"{code}.po").write_text(
            f'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n'
            f'"Plural-Forms: {rule}\\n"\n\n'
            f'msgid "%(n)s part"\nmsgid_plural "%(n)s parts"\n{lines}',
            encoding="utf-8",
        )
    monkeypatch.setattr(language, "_LOCALE", tmp_path)
    language.catalogue.cache_clear()
    found = {}
    for code in ("en", "de", "ja"):
        token = speaking.set(code)
        found[code] = [ngettext("%(n)s part", "%(n)s parts", n) % {"n": n} for n in (1, 2)]
        speaking.reset(token)
    language.catalogue.cache_clear()
    assert found["en"] == ["1 part", "2 parts"]
    assert found["de"] == ["1 Teil", "2 Teile"]
    assert found["ja"] == ["部品 1 個", "部品 2 個"]


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("workers", "1 of 2", "Prüfprozesse: 1 von 2"),
        ("source top", "no picture since 12:00:01 (gone)",
         "Quelle top: kein Bild seit 12:00:01 (gone)"),
        ("output plc", "10.0.0.1:502: the PLC does not answer; 1200 results were dropped",
         "Ausgang plc: 10.0.0.1:502: Die SPS antwortet nicht; 1.200 Ergebnisse wurden verworfen"),
        ("sight top", reason("dark", "mean grey value 0.031, references 0.400 and more"),
         "Sicht von top: Das Bild ist zu dunkel: Beleuchtung prüfen. "
         "mittlerer Grauwert 0,031; Gutteile ab 0,4"),
        ("recipe of top is known", "no number: 'x'", "Produkt zum Rezept von top: no number: 'x'"),
        ("something", "model: of another program", "something: model: of another program"),
    ],
)  # fmt: skip
def test_what_the_station_knows_of_itself_is_told_in_the_readers_language(
    name: str, words: str, told: str
) -> None:
    state = State(Events())
    state.tell(name, False, words)
    assert state.why == [f"{name}: {words}"]  # for programs
    token = speaking.set("de")
    assert what_blinds(state) == [told]
    speaking.reset(token)
    assert what_blinds(state) != state.why or name == "something"


def test_words_of_a_chart_are_whole() -> None:
    times, ticks = [0.0, 10.0], [(0.0, "4:00 PM"), (5.0, "8:00 PM"), (9.9, "12:00 AM")]
    chart = control_chart(times, [1, 2], [], [], None, [], ticks, (0.0, 10.0), "x")
    assert "4:00 PM" in chart
    assert 'chart-other"' in chart.partition("8:00 PM")[0].rpartition("<text")[2]
    assert "12:00 AM" not in chart  # it would be cut off
    kept = control_chart(times, [1, 2], [], [], None, [], [*ticks[:2], (9.9, "0")], (0, 10), "x")
    assert ">0</text>" in kept


def test_health_and_a_part_are_told_in_the_readers_language(
    client: TestClient, station: Station
) -> None:
    product, version = add_product(station)
    usual, seen = (look(np.full((32, 32, 3), grey, np.uint8)) for grey in (200, 20))
    dark = Usual.of([usual]).fault(seen)
    [number] = add(station, product, version, [None], reason=dark)
    client.cookies.set("language", "ja")
    station.state.tell("source top", False, "not opened yet")
    page = client.get("/health").text
    assert "<strong>入力元 top</strong>" in page
    assert "まだ開いていません" in page
    page = client.get(f"/history/{number}").text
    assert "平均グレー値 0.078、良品は 0.784 以上" in page
    assert "grey value" not in page


@pytest.mark.parametrize("code", sorted(REASONS))
def test_every_reason_is_told_in_words(code: str) -> None:
    assert why(code) == why(reason(code, "some detail"))
    assert why(code) not in (code, reason(code))
    assert measured(reason(code, "some detail")) == "some detail"
    assert measured(reason(code)) == ""


def test_every_change_of_a_shift_is_told_in_words() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in STATION.rglob("*.py"))
    noted = set(re.findall(r'"((?:product|version)\.[a-z]+)"', text)) | {
        f"version.{how}"
        for how in ("fit", "add", "forget", "threshold", "upload", "drop", "restore")
    }
    assert {"product.checks", "version.live", "version.accept"} <= noted
    assert [one for one in sorted(noted) if action_words(one) == one] == []


@cache
def _sentences() -> dict[str | tuple[str, ...], list[str]]:
    """All of them, with where they stand."""
    with (LOCALE / "babel.cfg").open() as file:
        methods, options = parse_mapping_cfg(file, filename="babel.cfg")
    found: dict[str | tuple[str, ...], list[str]] = {}
    for name, line, sentence, _comments, _context in extract_from_dir(STATION, methods, options):
        found.setdefault(sentence, []).append(f"{name}:{line}")
    return found


@pytest.mark.slow
def test_every_sentence_can_be_gathered() -> None:
    found = _sentences()
    assert "Review and learn" in found  # of a template
    assert "There is no such product." in found  # of the code
    assert any(isinstance(one, tuple) for one in found)
    for one, places in found.items():
        plain = one if isinstance(one, str) else one[1]
        assert re.sub(r"%\(\w+\)s|%%", "", plain).count("%") == 0, (one, places)


@pytest.mark.skipif(not list(LOCALE.glob("*.po")), reason="there are no translations yet")
@pytest.mark.parametrize("code", sorted(set(LANGUAGES) - {"en"}))
def test_every_sentence_is_there(code: str) -> None:
    with (LOCALE / f"{code}.po").open("rb") as file:
        catalog = read_po(file, locale=code)
    wrong = []
    for sentence in _sentences():
        message: Message | None = catalog.get(sentence)
        said = message.string if message else ""
        forms = [said] if isinstance(said, str) else list(said)
        if message is None or message.fuzzy or not all(forms):
            wrong.append(f"missing: {sentence}")
            continue
        if not isinstance(sentence, str) and len(forms) != catalog.num_plurals:
            wrong.append(f"plural forms: {sentence}")
        places = set(re.findall(r"%\((\w+)\)s", "".join(sentence)))
        if any(set(re.findall(r"%\((\w+)\)s", form)) - places for form in forms):
            wrong.append(f"placeholders: {sentence}")
    assert not wrong, "\n".join(wrong[:20])
