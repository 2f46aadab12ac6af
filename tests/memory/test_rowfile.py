"""Rows in a file of their own, and a bank over it."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from offnominal.errors import ModelFileError, OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.filed import FiledBank
from offnominal.memory.retrieval import nearest_among
from offnominal.memory.rowfile import RowFile, RowWriter

RNG = np.random.default_rng(0)


def rows(count: int, dim: int = 6) -> np.ndarray:
    return RNG.standard_normal((count, dim)).astype(np.float32)


def test_written_in_pieces_it_is_a_safetensors_file(tmp_path: Path) -> None:
    path, pieces = tmp_path / "part.rows", [rows(3), rows(0), rows(5)]
    writer = RowWriter(path, 6)
    for piece in pieces:
        writer.append(piece)
        assert not path.exists(), "it has its name only when it is whole"
    np.testing.assert_array_equal(writer.rows, np.concatenate(pieces).astype(np.float16))
    done = writer.close().verify()
    assert not done.rows.flags.writeable
    np.testing.assert_array_equal(done.rows, load_file(path)["rows"])
    np.testing.assert_array_equal(RowFile(path).rows, np.concatenate(pieces).astype(np.float16))
    assert [each.name for each in tmp_path.iterdir()] == ["part.rows"]


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    path = tmp_path / "part.rows"
    with pytest.raises(ModelFileError, match="does not exist"):
        RowFile(path)
    writer = RowWriter(path, 6)
    with pytest.raises(OptionError, match=r"takes \(n, 6\)"):
        writer.append(rows(2, 5))
    with pytest.raises(OptionError, match="65504"):
        writer.append(np.full((1, 6), 1e6, np.float32))
    writer.append(rows(40))
    with pytest.raises(ModelFileError, match="unfinished"):
        RowFile(path.with_name("part.rows.part"))
    writer.close()
    content = bytearray(path.read_bytes())
    content[5000 - 600] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="checksum"):
        RowFile(path).verify()
    path.write_bytes(content[:-8])
    with pytest.raises(ModelFileError, match="truncated"):
        RowFile(path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="is there already"):
        RowWriter(tmp_path / "notes.txt", 6)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_bank_over_a_file_finds_what_one_in_memory_finds(tmp_path: Path) -> None:
    plain, filed = MemoryBank(storage="fp16"), FiledBank(tmp_path / "part.rows")
    for number in range(4):
        own = rows(9)
        for bank in (plain, filed):
            bank.add(own, number, counts=True)
    filed.finish()
    again = FiledBank(tmp_path / "part.rows")
    again.adopt(filed.columns())
    assert set(plain.columns()) - set(filed.columns()) == {"rows"}
    asked = rows(9).astype(np.float16).astype(np.float32)
    for bank in (plain, filed, again):
        for one, other in zip(bank.search(asked, 2, 1), plain.search(asked, 2, 1), strict=True):
            np.testing.assert_array_equal(one, other)
        told = nearest_among(bank, [3, 0], asked, (4, 2))
        for level, part in enumerate((slice(0, 4), slice(4, 6))):
            apart = asked[:, None, part] - plain.take(slice(None))[None, :, part]
            squared = np.square(apart).sum(2)[:, np.isin(plain.reference, (0, 3))]
            np.testing.assert_allclose(told[level], squared.min(1), rtol=1e-5)
    again.active(2, False)
    assert again.left() == 27
    for change in (lambda: again.truncate(3), again.compact, lambda: again.add(rows(1))):
        with pytest.raises(OptionError, match="fit anew"):
            change()
    other = FiledBank(tmp_path / "part.rows")
    with pytest.raises(ModelFileError, match="another fit"):
        other.adopt(filed.columns() | {"crc32": np.array([1])})


def test_only_patches_near_the_same_place_are_compared() -> None:
    bank = MemoryBank()
    own = np.zeros((16, 2), np.float32)
    own[:, 0] = np.arange(16)
    bank.add(own, 0)
    asked = own[::-1].copy()[
        :4
    ]  # on a grid of 2 x 2, whose centres fall on these of 4 x 4: 5, 7, 13, 15
    found = nearest_among(bank, [0], asked, (2,), lambda number: (4, 4), (2, 2), 0)
    np.testing.assert_array_equal(found[0], np.square(np.array([15 - 5, 14 - 7, 0, 12 - 15])))
