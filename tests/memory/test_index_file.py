"""Indexes in model files: the same after opening, refused when damaged, and small when on disk."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.memory.indexed import DIM, OWNERS, PATCHES, bank_of, pictures
from torch import Tensor, nn

from offnominal.errors import ModelFileError
from offnominal.memory import MemoryBank
from offnominal.memory.index import FaissIndex
from offnominal.memory.index_build import build_index, update_index
from offnominal.memory.index_choice import parse_search
from offnominal.memory.index_file import (
    attach_indexes,
    lists_path,
    load_index,
    save_index,
    save_indexes,
)
from offnominal.memory.index_open import _sound

KINDS = ["ivf", "hnsw", "ivfpq", "disk"]


class Model(nn.Module):
    def __init__(self, bank: MemoryBank) -> None:
        super().__init__()
        self.bank = bank


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MemoryBank, Path]]:
    """Of each kind a bank with its index, and the model file."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in KINDS:
        bank = bank_of(pictures(OWNERS))
        bank.index = build_index(bank, parse_search(f"{kind},recall=0.9"))
        found[kind] = bank, write(bank, folder / f"{kind}.offn")
    return found


def write(bank: MemoryBank, path: Path) -> Path:
    model = Model(bank)
    save_file(model.state_dict() | save_indexes(model, path), path)
    return path


def read(path: Path) -> MemoryBank:
    tensors = load_file(path)
    indexes = {name: tensors.pop(name) for name in list(tensors) if name.endswith(".index")}
    model = Model(MemoryBank(DIM))
    model.load_state_dict(tensors)
    attach_indexes(model, indexes, path)
    return model.bank


def header(tensor: Tensor) -> tuple[dict[str, Any], bytes, bytes]:
    """The header, the numbers of the rows, and FAISS' bytes."""
    raw = tensor.numpy().tobytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:start])
    stop = start + (4 * head["entries"] if head["mapped"] else 0)
    return head, raw[start:stop], raw[stop:]


def joined(head: dict[str, Any], rows: bytes, body: bytes) -> Tensor:
    text = json.dumps(head).encode()
    whole = len(text).to_bytes(8, "little") + text + rows + body
    return torch.from_numpy(np.frombuffer(whole, np.uint8).copy())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_after_opening(kind: str, saved: dict[str, tuple[MemoryBank, Path]]) -> None:
    bank, path = saved[kind]
    opened = read(path)
    assert isinstance(bank.index, FaissIndex)
    assert isinstance(opened.index, FaissIndex)
    queries = pictures(1, seed=5)[0]
    for mine, theirs in zip(bank.search(queries, 3), opened.search(queries, 3), strict=True):
        assert torch.equal(mine, theirs)
    for name in ("kind", "setting", "recall", "queries", "built", "target", "neighbours"):
        assert getattr(opened.index, name) == getattr(bank.index, name)
    assert lists_path(path).exists() == (kind == "disk")
    assert b"pickle" not in path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_forgotten_rows_stay_forgotten(kind: str, tmp_path: Path) -> None:
    bank = bank_of(pictures(OWNERS))
    index = build_index(bank, parse_search(f"{kind},recall=0.9"))
    assert index is not None
    index.forget(bank.owner != 4)
    bank.forget([4])
    bank.index = index
    opened = read(write(bank, tmp_path / "part.offn"))
    queries = pictures(1, seed=5)[0]
    assert torch.equal(opened.search(queries)[0], bank.search(queries)[0])
    assert opened.index is not None
    assert len(opened.index) == len(bank)


def test_lists_on_disk_are_mapped_and_take_nothing_in(
    saved: dict[str, tuple[MemoryBank, Path]], tmp_path: Path
) -> None:
    bank = read(saved["disk"][1])
    index = bank.index
    assert isinstance(index, FaissIndex)
    lists = faiss.downcast_InvertedLists(index.faiss.invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    more = pictures(8, seed=3)
    bank.add(more[0], OWNERS)
    index.add(more[0])
    update_index(bank, parse_search("disk,recall=0.9"))
    assert bank.index is index
    assert len(index) == OWNERS * PATCHES
    assert (bank.search(more[0])[0] == 0).all()
    # Opened again with rows that the lists lack, it finds them still.
    assert (read(write(bank, tmp_path / "more.offn")).search(more[0])[0] == 0).all()
    for owner, rows in enumerate(more[1:], start=OWNERS + 1):
        bank.add(rows, owner)
    update_index(bank, parse_search("disk,recall=0.9"))
    assert bank.index is not None
    assert len(bank.index) == len(bank)
    again = read(write(bank, tmp_path / "more.offn"))
    assert again.index is not None
    assert len(again.index) == len(bank)


def test_saving_an_opened_model_with_lists(
    saved: dict[str, tuple[MemoryBank, Path]], tmp_path: Path
) -> None:
    path = saved["disk"][1]
    before = lists_path(path).read_bytes()
    bank = read(path)
    write(bank, path)
    assert lists_path(path).read_bytes() == before
    other = write(bank, tmp_path / "other.offn")
    assert lists_path(other).read_bytes() == before
    read(other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.offn", "other.offn.index"]
    opened = read(other)
    lists_path(other).unlink()
    lists_path(other).write_bytes(before[:-1])
    with pytest.raises(ModelFileError, match="was replaced since"):
        write(opened, tmp_path / "third.offn")
    with pytest.raises(ModelFileError, match="cannot be written"):
        write(read(path), tmp_path / "absent" / "third.offn")


def test_lists_must_be_beside_the_model_and_its_own(
    saved: dict[str, tuple[MemoryBank, Path]], tmp_path: Path
) -> None:
    path = saved["disk"][1]
    copy = tmp_path / "moved.offn"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ModelFileError, match=r"moved\.offn\.index: does not exist.*copy both"):
        read(copy)
    other = bank_of(pictures(OWNERS, seed=9))
    other.index = build_index(other, parse_search("disk,recall=0.9"))
    lists = lists_path(write(other, tmp_path / "other.offn"))
    lists_path(copy).write_bytes(lists.read_bytes())
    with pytest.raises(ModelFileError, match=r"is not the file that was saved with moved\.offn"):
        read(copy)
    whole = bytearray(lists_path(path).read_bytes())
    whole[len(whole) // 2] ^= 1
    lists_path(copy).write_bytes(whole)
    with pytest.raises(ModelFileError, match="or is damaged"):
        read(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_tensors_are_refused(kind: str, saved: dict[str, tuple[MemoryBank, Path]]) -> None:
    path = saved[kind][1]
    tensor = load_file(path)["bank.index"]
    head, rows, body = header(tensor)
    flipped = bytearray(body or b"\0")
    flipped[len(flipped) // 2] ^= 1
    wrong: list[Tensor] = [
        tensor[:0],
        tensor[:7],
        tensor[:40],
        tensor[:-1],
        tensor.repeat(2),
        tensor[None],
        tensor.float(),
        joined(head, rows, bytes(flipped)),
        joined(head | {"kind": "lsh"}, rows, body),
        joined(head | {"entries": "many"}, rows, body),
        joined(head | {"neighbours": 0}, rows, body),
        joined(head | {"bytes": -1}, rows, body),
        joined(head | {"format": 2}, rows, body),
        joined(head | {"entries": OWNERS * PATCHES - 1}, rows, body),
        joined(head | {"dim": DIM + 1}, rows, body),
        joined({}, rows, body),
    ]
    if rows:
        wrong.append(joined(head, rows[4:] + rows[4:8], body))
    for each in wrong:
        with pytest.raises(ModelFileError, match=path.name):
            load_index(each, lists_path(path), path)


def broken_link(made: object) -> None:
    links = made.hnsw.neighbors  # type: ignore[attr-defined]  # FAISS has no types
    faiss.rev_swig_ptr(links.data(), links.size())[5] = 10**6


def broken_level(made: object) -> None:
    # A link of the upper level to an entry that is on the lowest only.
    graph = made.hnsw  # type: ignore[attr-defined]
    levels = faiss.vector_to_array(graph.levels)
    low, high = int((levels == 1).argmax()), int((levels > 1).argmax())
    place = int(graph.offsets.at(high)) + int(graph.cum_nneighbor_per_level.at(1))
    faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())[place] = low


def broken_entry(made: object) -> None:
    made.hnsw.entry_point = -1  # type: ignore[attr-defined]


def broken_metric(made: object) -> None:
    made.metric_type = faiss.METRIC_INNER_PRODUCT  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", [broken_link, broken_level, broken_entry, broken_metric])
def test_what_faiss_would_follow_blindly_is_checked(
    damage: Callable[[object], None], saved: dict[str, tuple[MemoryBank, Path]]
) -> None:
    path = saved["hnsw"][1]
    head, rows, body = header(load_file(path)["bank.index"])
    made = faiss.deserialize_index(np.frombuffer(body, np.uint8))
    assert _sound(faiss, made, "hnsw", OWNERS * PATCHES, DIM)
    damage(made)
    # Newer versions of FAISS check links themselves, so ours is asked directly as well.
    assert not _sound(faiss, made, "hnsw", OWNERS * PATCHES, DIM)
    body = faiss.serialize_index(made).tobytes()
    head |= {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    with pytest.raises(ModelFileError, match="damaged"):
        load_index(joined(head, rows, body), lists_path(path), path)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "ivfpq"])
def test_an_index_of_another_type_is_refused(
    kind: str, saved: dict[str, tuple[MemoryBank, Path]]
) -> None:
    head, rows, _ = header(load_file(saved[kind][1])["bank.index"])
    made = faiss.index_factory(DIM, "Flat")
    made.add(np.zeros((OWNERS * PATCHES, DIM), np.float32))
    body = faiss.serialize_index(made).tobytes()
    head |= {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    with pytest.raises(ModelFileError, match="not what its header says"):
        load_index(joined(head, rows, body), Path("none"), Path("part.offn"))


def test_damage_asks_for_no_memory(saved: dict[str, tuple[MemoryBank, Path]]) -> None:
    """A length of 2⁴⁰ among FAISS' bytes is refused, not allocated."""
    path = saved["hnsw"][1]
    head, rows, body = header(load_file(path)["bank.index"])
    count = (OWNERS * PATCHES).to_bytes(8, "little")
    places = [i for i in range(40, len(body)) if body[i : i + 8] == count]
    assert places
    huge = body[: places[0]] + (2**36).to_bytes(8, "little") + body[places[0] + 8 :]
    head |= {"sha256": hashlib.sha256(huge).hexdigest()}
    before = faiss.get_deserialization_vector_byte_limit()
    with pytest.raises(ModelFileError, match="damaged"):
        load_index(joined(head, rows, huge), lists_path(path), path)
    assert faiss.get_deserialization_vector_byte_limit() == before


def test_an_index_must_be_that_of_its_bank(
    saved: dict[str, tuple[MemoryBank, Path]], tmp_path: Path
) -> None:
    bank, path = saved["ivf"]
    assert isinstance(bank.index, FaissIndex)
    tensors = {"bank.index": save_index(bank.index, tmp_path / "none")}
    for other in (bank_of(pictures(OWNERS - 1)), bank_of(pictures(OWNERS, dim=DIM + 4))):
        with pytest.raises(ModelFileError, match="its search index is of 4000 rows of length 32"):
            attach_indexes(Model(other), tensors, path)
        assert other.index is None
    with pytest.raises(ModelFileError, match="belongs to no bank"):
        attach_indexes(nn.ModuleDict({"bank": nn.Linear(1, 1)}), tensors, path)


def test_several_banks_have_files_of_their_own(tmp_path: Path) -> None:
    banks = nn.ModuleList([bank_of(pictures(OWNERS, seed)) for seed in (1, 2)])
    model = nn.ModuleDict({"more": banks})
    for bank in banks:
        bank.index = build_index(bank, parse_search("disk,recall=0.9"))  # type: ignore[arg-type]
    tensors = save_indexes(model, tmp_path / "part.offn")
    assert list(tensors) == ["more.0.index", "more.1.index"]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["part.offn.more.0.index", "part.offn.more.1.index"]
    attach_indexes(model, tensors, tmp_path / "part.offn")
