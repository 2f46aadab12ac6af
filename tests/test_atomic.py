"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from offnominal.atomic import replacing, write_atomically
from offnominal.errors import OptionError


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.bin", tmp_path / "b.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    plain.write_bytes(b"")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "b.bin"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"one")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"one"
        raise RuntimeError
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none/a\.bin: cannot be written"):
        write_atomically(tmp_path / "none" / "a.bin", b"")
