"""What the station knows of itself: facts by name, and whether it is blind."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from offnominal.station.events import Events

__all__ = ["Fact", "State"]


@dataclass(frozen=True)
class Fact:
    """Something that is as it should be, or is not.

    Attributes
    ----------
    name : str
        ``workers``, ``queue``, ``source NAME``, ``output NAME``, ``sight PRODUCT``.
    ok : bool
    since : datetime
        When it became so; other words for the same do not change it.
    words : str
        What is wrong, in English; of what is right, whatever is worth knowing.
    blinds : bool
        Whether the station cannot inspect while it is not ok. A webhook that nobody answers is a
        trouble and blinds nobody.
    """

    name: str
    ok: bool
    since: datetime
    words: str = ""
    blinds: bool = True

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"since": self.since.isoformat()}


class State:
    """The facts; each change is published as the event ``state``.

    Parameters
    ----------
    events : Events
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._facts: dict[str, Fact] = {}

    def tell(self, name: str, ok: bool, words: str = "", blinds: bool = True) -> bool:
        """Say how something is; nothing happens where it was said before. In the event loop.

        Returns
        -------
        bool
            Whether that is new.
        """
        before = self._facts.get(name)
        same = before is not None and before.ok == ok
        since = before.since if before is not None and same else datetime.now(UTC)
        fact = Fact(name, ok, since, words, blinds)
        if fact == before:
            return False
        self._facts[name] = fact
        self._events.publish("state", name=name, ok=ok, blind=self.blind)
        return True

    def forget_trouble(self, name: str, beginning: str) -> None:
        """Of what is no more, where nothing else was said meanwhile."""
        fact = self._facts.get(name)
        if fact is not None and not fact.ok and fact.words.startswith(beginning):
            self.forget(name)

    def forget(self, name: str) -> None:
        """Of what is no more."""
        if self._facts.pop(name, None) is not None:
            self._events.publish("state", name=name, ok=True, blind=self.blind)

    @property
    def facts(self) -> list[Fact]:
        """By name."""
        return [self._facts[name] for name in sorted(self._facts)]

    @property
    def blind(self) -> bool:
        """Whether parts that pass now are not inspected."""
        return any(fact.blinds and not fact.ok for fact in self._facts.values())

    @property
    def word(self) -> str:
        """``ready`` or ``blind``."""
        return "blind" if self.blind else "ready"

    @property
    def why(self) -> list[str]:
        """What blinds it, in words."""
        return [
            f"{fact.name}: {fact.words}" if fact.words else fact.name
            for fact in self.facts
            if fact.blinds and not fact.ok
        ]
