"""References of docstrings, as ``:class:`~package.Name```, become links of the site."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`(~?)([\w.]+)`")


class Roles(Extension):
    """Writes links in place of roles, to what the site has a place for."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Change a docstring as it is collected."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(
                lambda role: _link(obj, *role.groups()), obj.docstring.value
            )


def _link(obj: Object, short: str, name: str) -> str:
    """A link by the whole name of what is meant; plain words where the site has no such place."""
    try:
        whole = name if "." in name else obj.resolve(name)
    except Exception:
        whole = name
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref optional identifier="{whole}"><code>{shown}</code></autoref>'
