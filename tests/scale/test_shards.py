"""Cutting, handing out and halving, without a process or a network."""

import errno
import socket
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from tests.scale.work import Writes

from offnominal.errors import OptionError
from offnominal.scale.engines import Serial, engine_for
from offnominal.scale.failures import Failed, StartDeaths
from offnominal.scale.parts import Parts, Store
from offnominal.scale.shards import MOST, Died, Function, Shard, cut, run_shards


def no_stamp(name: str) -> str:
    return ""


class Mortal:
    """Runs two shards at a time in this process; one with a deadly item dies of it."""

    def __init__(self, deadly: set[str], late: int = 0) -> None:
        self.deadly, self.late = deadly, late
        self.function: Any = None
        self.given: deque[Shard] = deque()
        self.died: list[Shard] = []
        self.closed = False

    def start(self, function: Function) -> None:
        self.function = function

    @property
    def free(self) -> int:
        return 2 - len(self.given)

    def submit(self, shard: Shard) -> None:
        self.given.append(shard)

    def wait(self) -> list[tuple[Shard, Any]]:
        shard = self.given.pop()
        if self.late:  # dies with its work done
            self.late -= 1
            self.function(shard)
            return [(shard, Died("late"))]
        if self.deadly & {*shard.items}:
            self.died.append(shard)
            return [(shard, Died("killed"))]
        return [(shard, self.function(shard))]

    def close(self) -> None:
        self.closed = True


def written(folder: Path) -> list[str]:
    """Every item of every part, in the order of the parts' names."""
    return [item for part in sorted(folder.iterdir()) for item in part.read_text().split("\n")]


def test_shards_are_cut_as_they_are_asked_for() -> None:
    taken = []

    def items() -> Any:
        for number in range(10**9):
            taken.append(number)
            yield str(number)

    shards = cut(items(), no_stamp)
    first = [next(shards) for _ in range(3)]
    assert [one.start for one in first] == [0, 16, 32]
    assert len(taken) == 48
    several = list(cut(map(str, range(10_000)), no_stamp))
    assert max(len(one.items) for one in several) == MOST
    assert [item for one in several for item in one.items] == [*map(str, range(10_000))]
    assert sorted(one.name for one in several) == [one.name for one in several]


def test_the_name_tells_the_images_and_their_files() -> None:
    one, other = Shard(0, ("a", "b"), ("1", "2")), Shard(0, ("a", "b"), ("1", "3"))
    assert len({one.name, other.name, Shard(0, ("a", "c"), ("1", "2")).name}) == 3
    assert one.name == Shard(0, ("a", "b"), ("1", "2")).name


@pytest.mark.parametrize("count", [1, 7, 64])
def test_what_kills_is_found_and_the_rest_is_done_once(tmp_path: Path, count: int) -> None:
    items = [f"{number:03d}" for number in range(count)]
    engine = Mortal({items[count // 2]})
    given_up: list[str] = []
    ended = list(
        run_shards(
            Writes(str(tmp_path)), cut(items, no_stamp), engine,
            lambda shard: False, lambda shard: (tmp_path / shard.name).exists(),
            lambda shard, reason: given_up.extend(shard.items),
        )
    )  # fmt: skip
    assert given_up == [items[count // 2]]
    assert sorted(item for shard, _ in ended for item in shard.items) == items
    assert written(tmp_path) == [one for one in items if one not in given_up]
    assert engine.died[-3:] == [engine.died[-1]] * 3
    assert engine.closed


def test_work_that_was_done_before_a_death_is_not_done_again(tmp_path: Path) -> None:
    items = [f"{number:03d}" for number in range(32)]
    ended = run_shards(
        Writes(str(tmp_path)), cut(items, no_stamp), Mortal(set(), late=2),
        lambda shard: False, lambda shard: (tmp_path / shard.name).exists(),
        lambda shard, reason: pytest.fail(reason),
    )  # fmt: skip
    assert [result for _, result in ended] == [None, None]
    assert written(tmp_path) == items


def test_where_all_is_there_no_worker_starts(tmp_path: Path) -> None:
    class Unstartable(Mortal):
        def start(self, function: Function) -> None:
            pytest.fail("started")

    ended = run_shards(
        Writes(str(tmp_path)), cut(["a"], no_stamp), Unstartable(set()),
        lambda shard: True, lambda shard: True, lambda shard, reason: None,
    )  # fmt: skip
    assert len(list(ended)) == 1


def test_an_error_of_the_work_ends_the_run(tmp_path: Path) -> None:
    function = Writes(str(tmp_path), refuses="no such model")
    ended = run_shards(
        function, cut(["a"], no_stamp), Serial(),
        lambda shard: False, lambda shard: False, lambda shard, reason: None,
    )  # fmt: skip
    with pytest.raises(OptionError, match="no such model"):
        list(ended)


def test_workers_that_never_come_to_work_end_the_run() -> None:
    deaths = StartDeaths()
    for _ in range(9):
        deaths.died("ended by SIGKILL")
    deaths.ready()
    for _ in range(9):
        deaths.died("ended by SIGKILL")
    with pytest.raises(OptionError, match=r"while they start.*SIGKILL"):
        deaths.died("ended by SIGKILL")


def test_fewer_workers_than_one_are_refused() -> None:
    with pytest.raises(OptionError, match="--workers 0"):
        engine_for(0, None)


def test_files_of_others_beside_parts_are_kept(tmp_path: Path) -> None:
    parts = Parts(Store(str(tmp_path)))
    [shard] = cut(["a"], no_stamp)
    parts.write(shard, ['{"image": "a"}'])
    for name in ("notes.txt", "others.parquet"):
        (tmp_path / "parts" / name).write_text("mine")
    parts.look()
    assert parts.names == {shard.name}
    parts.clear()
    assert not parts.names
    assert sorted(one.name for one in (tmp_path / "parts").iterdir()) == [
        "notes.txt", "others.parquet",
    ]  # fmt: skip


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    parts = Parts(Store(str(tmp_path)))
    [shard] = cut(["a"], no_stamp)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f"{shard.name}.parquet").write_bytes(b"PAR1")
    with pytest.raises(OptionError, match=f"{shard.name}.parquet: damaged"):
        list(parts.lines([shard.name]))


def test_a_full_disk_is_told_in_words() -> None:
    failed = Failed(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"))
    assert isinstance(failed.again(), OptionError)
    assert str(failed.again()).startswith("/tmp/x: No space left on device; mend that")


def test_a_cluster_that_is_no_more_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from offnominal.scale.actors import _check_answers

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    _check_answers("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        _check_answers(there)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(there)
    with pytest.raises(OptionError, match=f"--ray auto: the cluster at {there} does not.*ray stop"):
        _check_answers("auto")
    with pytest.raises(OptionError, match=f"--ray {there}: the cluster at {there} does not answer"):
        _check_answers(there)
    monkeypatch.setenv("RAY_ADDRESS", there)
    with pytest.raises(OptionError, match="unset RAY_ADDRESS"):
        _check_answers("auto")


@pytest.mark.parametrize("url", ["{tmp}", "memory://runs/{tmp}"])
def test_parts_are_joined_in_order_and_a_rerun_finds_them(tmp_path: Path, url: str) -> None:
    parts = Parts(Store(url.format(tmp=str(tmp_path).lstrip("/") if "://" in url else tmp_path)))
    shards = list(cut([f"{number:03d}" for number in range(40)], no_stamp))
    first, second = shards[1].halves()
    lines = {shard: [f'{{"image": "{item}", "score": 0.1}}' for item in shard.items]
             for shard in (shards[2], second, shards[0], first)}  # fmt: skip
    for shard, own in lines.items():
        assert not parts.written(shard)
        parts.write(shard, own)
        assert parts.written(shard)
    again = Parts(parts.store)
    again.look()
    left = list(again.left(shards))
    assert left == [shards[0], first, second, shards[2]]
    assert all(map(again.has, left))
    told = [f'{{"image": "{number:03d}", "score": 0.1}}' for number in range(40)]
    assert list(again.lines(one.name for one in reversed(left))) == told
    changed = list(cut([f"{number:03d}x" for number in range(40)], no_stamp))
    assert not any(map(again.has, again.left(changed)))
    parts.store.remove(Parts.folder)
    again.look()
    assert not again.names
