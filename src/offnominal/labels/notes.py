"""Lines on what was decided, each with how often and with the first examples."""

from collections import defaultdict

from offnominal.datasets.reading import such_as

__all__ = ["Notes"]


class Notes:
    """Collects what happened to files or entries, by what it was."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, what: str, example: object, action: str) -> None:
        """Note one."""
        self._found[what, action].append(str(example))

    def lines(self) -> list[str]:
        """A line each."""
        return [
            f"{what}: {len(found)}, {such_as(found)}: {action}"
            for (what, action), found in self._found.items()
        ]
