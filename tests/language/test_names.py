"""What parts are called."""

from pathlib import Path

import pytest

from offnominal.errors import OptionError
from offnominal.language.names import clean_name, read_class_names


def test_one_name() -> None:
    assert clean_name(None) == "object"
    assert clean_name("  metal \n nut ") == "metal nut"
    assert clean_name("六角ボルト") == "六角ボルト"
    with pytest.raises(OptionError, match="blank"):
        clean_name(" \t")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.json", '{"pcb1": "circuit board", "bolt": "六角ボルト"}'),
        ("a.csv", 'category,name\npcb1, "circuit board"\n\nbolt,六角ボルト\n'),
        ("b.csv", "\ufeffpcb1,circuit board\r\nbolt,六角ボルト\r\n"),
    ],
)
def test_files(tmp_path: Path, file: str, content: str) -> None:
    path = tmp_path / file
    path.write_text(content, encoding="utf-8")
    assert read_class_names(path) == {"pcb1": "circuit board", "bolt": "六角ボルト"}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b'["screw"]', "an object such as"),
        ("a.json", b'{"a": {"b": "c"}}', "an object such as"),
        ("a.json", b"{}", "no names"),
        ("a.json", b'{"a": "x", "a": "y"}', "a has two names"),
        ("a.csv", b"a,x\na,y\n", "a has two names"),
        ("a.csv", b"a\n", "line 1"),
        ("a.csv", b"a,b\na;b\n", "line 2"),
        ("a.csv", b"a,\n", "a has a blank name"),
        ("a.csv", b"", "no names"),
        ("a.csv", b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(OptionError, match=said) as caught:
        read_class_names(path)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        read_class_names(tmp_path / "none.json")
