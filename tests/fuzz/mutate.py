"""Files gone wrong, drawn from a seed, and what may become of a reader that is shown them.

A reader may take a damaged file for what it is, or raise an ``OffnominalError``. Any other
exception, more than a few seconds, or more than 1 GB is a fault. ``make fuzz`` shows every reader
10,000 files of each kind; the suite shows it as many as `COUNT` says.
"""

import io
import json
import os
import random
import signal
import string
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from offnominal.errors import OffnominalError

COUNT = int(os.environ.get("OFFNOMINAL_FUZZ", "120"))
SECONDS = 5.0  # of the processor; a slow one takes three for the covariances of PaDiM
MEMORY = 1 << 30

Mutate = Callable[[bytes, int, int], Iterator[bytes]]

_DEEP, _LONG = "\0deep", "\0long"  # stand for what json.dumps cannot write
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**9, 2**63, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), -float("inf"), "", "x", "0", "nan", "x" * 5000, "\ud800", "a\nb\0c", "../../x",
    [], [None], [[]], {}, {"": None}, [0] * 300, _DEEP, _LONG,
)  # fmt: skip


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Flipped, cut, removed, doubled and overwritten bytes, wherever they fall."""
    chance = random.Random(seed)
    for _ in range(count):
        made = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            at = chance.randrange(len(made) + 1)
            # Heads and tails say most of what a file is.
            at = chance.choice((at, at, min(at, chance.randrange(64)), max(0, len(made) - at % 64)))
            length = chance.choice((1, 1, 2, 8, 64, len(data) // 4))
            kind = chance.randrange(6)
            if kind == 0 and at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del made[at:]
            elif kind == 2:
                del made[at : at + length]
            elif kind == 3:
                made[at:at] = made[at : at + length]
            elif kind == 4:
                made[at : at + length] = chance.randbytes(length)
            else:
                made[at : at + length] = bytes([chance.choice((0, 0x7F, 0xFF))]) * length
        yield bytes(made)


def json_mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """JSON that is still JSON: values swapped, keys missing, unknown or doubled.

    Several lines may be a JSON text each. JSON within a string is changed as well.
    """
    chance = random.Random(seed)
    try:
        rows = [json.loads(data)]
    except ValueError:
        rows = [json.loads(line) for line in data.splitlines()]
    for _ in range(count):
        changed = chance.randrange(len(rows))
        made = [_change(row, chance) if i == changed else json.dumps(row)
                for i, row in enumerate(rows)]  # fmt: skip
        yield "\n".join(made).encode("utf-8", "surrogatepass")


def safetensors_mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """A safetensors file whose header is JSON of the right length, and says something else."""
    size = int.from_bytes(data[:8], "little")
    for header in json_mutations(data[8 : 8 + size], seed, count):
        yield len(header).to_bytes(8, "little") + header + data[8 + size :]


def zip_mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """A zip file, as npz is one, whose members are damaged and whose checksums are right."""
    chance = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(data)) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    for turn in range(count):
        victim = chance.choice(list(members))
        # What a member is stands at its beginning.
        own, rest = members[victim][:160], members[victim][160:]
        [damaged] = mutations(own, seed + turn, 1)
        into = io.BytesIO()
        with zipfile.ZipFile(into, "w") as written:
            for name, content in members.items():
                written.writestr(name, damaged + rest if name == victim else content)
        yield into.getvalue()


def attack(
    path: Path, read: Callable[[], object], *ways: Mutate, count: int = COUNT, seed: int = 0
) -> None:
    """Damage a file in each of some ways, let it be read, and put it back.

    An AssertionError lists what went wrong, by the way and the number of the damage.
    """
    data, faults = path.read_bytes(), []
    started = _peak()
    try:
        for way in ways or (mutations,):
            for turn, made in enumerate(way(data, seed, count)):
                path.write_bytes(made)
                if fault := fault_of(read):
                    faults.append(f"{way.__name__} {turn}: {fault}")
                if _peak() - started > MEMORY:
                    faults.append(f"{way.__name__} {turn}: {_peak() - started:,} bytes")
                    started = _peak()
    finally:
        path.write_bytes(data)
    assert not faults, f"{len(faults)} faults: " + "\n".join(faults[:20])


class _Hangs(BaseException):
    """No reader catches it."""


def fault_of(read: Callable[[], object]) -> str:
    def stop(*_: object) -> None:
        raise _Hangs

    before, began = signal.signal(signal.SIGALRM, stop), time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        read()
    except OffnominalError as error:
        if not _fit_for_a_person(str(error)):
            return f"an unreadable message: {str(error)[:300]!r}"
    except _Hangs:
        return "hangs"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # Of the processor, since others may keep it busy; what sleeps for long hangs, as told above.
    took = time.process_time() - began
    return f"took {took:.1f} s" if took > SECONDS else ""


def _fit_for_a_person(message: str) -> bool:
    return 0 < len(message) < 2000


def _peak() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _Text:
    """A string that holds JSON."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _opened(value: Any) -> Any:
    """The value, its containers copied and its strings of JSON opened."""
    if isinstance(value, dict):
        return {name: _opened(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_opened(entry) for entry in value]
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return _Text(_opened(json.loads(value)))
        except ValueError:
            pass
    return value


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, _Text):
        return json.dumps(_written(value.content))
    if value == _DEEP:
        return "[" * 100_000 + "]" * 100_000
    return "9" * 5000 if value == _LONG else json.dumps(value)


def _change(row: Any, chance: random.Random) -> str:
    """Another text for a value of JSON."""
    root = [_opened(row)]
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        places = list(_places(root))
        holder, key = chance.choice(places)
        kind = chance.randrange(8)
        if kind < 4:
            holder[key] = deepcopy(chance.choice(_VALUES))
        elif kind == 4 and holder is not root:
            del holder[key]
        elif kind == 5:
            other, name = chance.choice(places)
            holder[key] = deepcopy(other[name])
        elif isinstance(holder, dict):
            name = chance.choice(("", "unknown", *holder)) + chance.choice(string.ascii_letters)
            holder[name] = holder.pop(key) if kind == 6 else deepcopy(chance.choice(_VALUES))
        elif isinstance(holder[key], int | float):
            holder[key] *= chance.choice((-1, 0, 2, 1000, 1e300))
    return _written(root[0])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key below a value."""
    if isinstance(value, _Text):
        value = [value.content] if not isinstance(value.content, dict | list) else value.content
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list | _Text):
            yield from _places(value[key])
