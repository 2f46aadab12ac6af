import json

import pytest

from offnominal.text import apart, cell, digits, json_line, printable

WILD = ["a\nb", "a\x1b[31mb", "a\u2028b", "a\u202eb", "a\x85b\x0c", "caf\udce9", "\ufeffa", "a\tb"]


@pytest.mark.parametrize("name", WILD)
def test_a_name_steers_nothing(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert shown.splitlines() == [shown]
    shown.encode("utf-8")


def test_names_of_all_languages_stay_as_they_are() -> None:
    name = "Prüfung 検査\u3000部品 🔩"
    assert printable(name) == name


@pytest.mark.parametrize("name", [*WILD, "𝒳\x01", 'q"\\', "検査"])
def test_a_line_of_json_is_one_line_and_gives_the_name_back(name: str) -> None:
    line = json_line({"image": name})
    assert line.splitlines() == [line]
    line.encode("utf-8")
    assert json.loads(line) == {"image": name}


def test_json_has_no_word_for_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_line({"score": float("nan")})


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@SUM(A1)", "  =1", "\uff1d1", "\t=1"])
def test_a_spreadsheet_calculates_no_name(text: str) -> None:
    assert not cell(text).lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\t"))


def test_numbers_and_plain_names_are_cells_as_they_are() -> None:
    assert [cell(x) for x in (-1.5, None, True, "a-b=c.png")] == [-1.5, None, True, "a-b=c.png"]


def test_a_score_is_told_with_the_digits_it_has() -> None:
    assert digits(0.050412338972091675) == "0.05041234"
    assert [digits(v) for v in (1.0, 0.1, 123456789.123)] == ["1", "0.1", "1.2345679e+08"]
    assert [digits(v) for v in (float("nan"), float("-inf"), 1e300)] == ["nan", "-inf", "1e+300"]


def test_a_score_is_seen_on_its_side_of_the_threshold() -> None:
    assert apart(0.0504101, 0.05041) == ("0.0504101", "0.05041")
    assert apart(0.1, 0.1) == ("0.1", "0.1")
    assert apart(0.71234, 0.05041) == ("0.7123", "0.05041")
