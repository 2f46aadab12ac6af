"""Base URLs and keys: what is refused, and that nothing secret is repeated."""

import pytest

from offnominal.chat.endpoint import check_endpoint, read_key
from offnominal.errors import OptionError


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("http://localhost:11434/v1/", "http://localhost:11434/v1"),
        ("https://api.example.com/openai/v1", "https://api.example.com/openai/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_base_urls(given: str, kept: str) -> None:
    assert check_endpoint(given) == kept


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("", "is no URL of a server"),
        ("127.0.0.1:8080/v1", "is no URL"),
        ("ftp://host/v1", "is no URL of a server"),
        ("http:///v1", "is no URL of a server"),
        ("http://host:port/v1", "is no URL"),
        ("http://host/v1\nX-Header: 1", "is no URL of a server"),
        ("http://host/v1/chat/completions", "leave /chat/completions out"),
        ("https://me:hunter2@host/v1", "user name, a password or a query"),
        ("https://host/v1?api-key=hunter2", "user name, a password or a query"),
    ],
)
def test_what_is_no_base_url(given: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem) as error:
        check_endpoint(given)
    assert "http://127.0.0.1:8080/v1" in str(error.value), "the remedy"
    assert "hunter2" not in str(error.value)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key(None) is None
    monkeypatch.setenv("PART_KEY", " sk-hunter2\n")
    assert read_key("PART_KEY") == "sk-hunter2"


@pytest.mark.parametrize(
    "content", [None, "", "  ", "sk-hunter2\nX: 1", "sk hunter2", "sk-hunter2é"]
)
def test_what_is_no_key(content: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PART_KEY", raising=False)
    if content is not None:
        monkeypatch.setenv("PART_KEY", content)
    with pytest.raises(OptionError, match="key_variable PART_KEY") as error:
        read_key("PART_KEY")
    assert "hunter2" not in str(error.value)
