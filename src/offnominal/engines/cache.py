"""Graphs kept on disk, so that one machine writes a network down once.

An entry is a folder: the graph, its facts, and what engines made of it. It is found by all that the
graph depends on, so it cannot be stale; see :mod:`~offnominal.engines.identity`.
"""

import hashlib
import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from offnominal.atomic import replacing
from offnominal.engines.base import EXTRAS
from offnominal.engines.files import FileDigests
from offnominal.engines.machine import this_machine
from offnominal.engines.network import FACTS, GRAPH, ExportedNetwork
from offnominal.errors import ModelFileError

__all__ = ["EngineCache", "default_folder"]

LIMIT = 4 * 2**30  # bytes


def default_folder() -> Path:
    """``engines`` in ``$OFFNOMINAL_CACHE``, or in ``offnominal`` in the user's cache folder."""
    own = os.environ.get("OFFNOMINAL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(base) / "offnominal") / "engines"


class EngineCache:
    """Graphs of networks under a size limit; safe to share between processes.

    Parameters
    ----------
    folder : Path or None
        None: :func:`default_folder`. Made when something is kept.
    limit : int
        Bytes that it may take, and never more than half of what is free on the disk: entries that
        were not used for longest make room.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder = folder or default_folder()
        self.limit = limit
        self.files = FileDigests(self.folder / "files")

    def find(self, key: str, compiled: bool = False) -> tuple[ExportedNetwork | None, str]:
        """A graph, whole and compared with its checksum, or None; and what was damaged, in words.

        A damaged entry is removed, so that it is made anew. Where what an engine ``compiled`` of it
        will do, the graph itself is not read before it is needed.
        """
        place = self._place(key)
        try:
            found = ExportedNetwork.read(place)
            if not (compiled and any((place / "openvino").glob("*.blob"))):
                found.verify()
        except FileNotFoundError:
            return None, ""
        except (ModelFileError, OSError) as error:
            self.drop(key)
            return None, str(error)
        with suppress(OSError):  # a folder that others keep, to be read only
            os.utime(place / FACTS)
        return found, ""

    def put(self, key: str, network: ExportedNetwork) -> ExportedNetwork:
        """Keep a graph, if there is room; the one that lies there, or else the one given."""
        if not self._make_room(network.facts.size):
            return network
        place = self._place(key)
        temporary = self.folder / f".{secrets.token_hex(8)}"
        try:
            temporary.mkdir(parents=True)
            network.write(temporary)
            try:
                temporary.rename(place)
            except OSError:  # another process was first, and has written the same
                shutil.rmtree(temporary, ignore_errors=True)
            return ExportedNetwork.read(place)
        except (OSError, ModelFileError):
            # A disk that is full or read-only must not end a run: the next one writes it again.
            shutil.rmtree(temporary, ignore_errors=True)
            return network

    def filed(self, network: ExportedNetwork) -> ExportedNetwork:
        """The same network, its graph as a file here, by its checksum.

        A file takes engines a third of the memory. Nothing but the graph is taken from here; where
        it goes while it is used, there is still the one that was given.

        Raises
        ------
        ModelFileError
            If the graph is not as it was written.
        """
        key, held = network.facts.sha256, network.graph
        assert not isinstance(held, Path)
        network.verify()
        graph = self._place(key) / GRAPH
        if graph.is_file():
            found = ExportedNetwork(network.facts, graph, held)
            with suppress(ModelFileError):
                found.verify()
                with suppress(OSError):
                    os.utime(graph.parent / FACTS)
                return found
            self.drop(key)
        kept = self.put(key, network).graph
        return ExportedNetwork(network.facts, kept, held) if isinstance(kept, Path) else network

    def drop(self, key: str) -> None:
        """Remove an entry."""
        place, aside = self._place(key), self.folder / f".{secrets.token_hex(8)}"
        with suppress(OSError):
            place.rename(aside)  # at once, so that nobody opens half of it
            shutil.rmtree(aside, ignore_errors=True)

    # -- which engine was fastest -------------------------------------------------------------

    def choice(self, graph: str, precision: str) -> str | None:
        """The engine that was fastest with a graph on this machine, as it is now; or None."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads(self._choice(graph, precision).read_bytes())["engine"]
            return told if told in EXTRAS else None
        return None

    def remember(self, graph: str, precision: str, engine: str, told: dict[str, Any]) -> None:
        """Note the fastest engine, and what else is known of it."""
        place = self._choice(graph, precision)
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as temporary:
                facts = {"engine": engine, "machine": this_machine(), **told}
                temporary.write_text(json.dumps(facts, indent=1))

    def _choice(self, graph: str, precision: str) -> Path:
        told = json.dumps([graph, precision, this_machine()])
        return self.folder / "choices" / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.json"

    # -- room ---------------------------------------------------------------------------------

    def _place(self, key: str) -> Path:
        return self.folder / f"graph-{key}"

    def _make_room(self, needed: int) -> bool:
        """Remove entries that were not used for longest; whether there is room now."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return False
        entries = []
        for place in self.folder.glob("graph-*"):
            with suppress(OSError):  # another process removed it
                size = sum(one.stat().st_size for one in place.rglob("*") if one.is_file())
                entries.append(((place / FACTS).stat().st_mtime, size, place.name[6:]))
        total = sum(size for _, size, _ in entries)
        limit = min(self.limit, total + free // 2)
        for _, size, key in sorted(entries):
            if total + needed <= limit:
                break
            self.drop(key)
            total -= size
        return total + needed <= limit
