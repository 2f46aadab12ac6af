"""What constructors of this package take, read from their source: without importing torch.

A class is read as a stand-in of the same name, bases, documentation, class attributes and
constructor's signature; nothing of the constructor's body. Where there is no source, or it is not
written plainly, the class itself is to be imported.
"""

import ast
import builtins
import inspect
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["option_defaults", "stand_in"]

_OWN = "offnominal"
# Modules that cost nothing, whose names may stand in annotations and defaults.
_LIGHT = ("typing", "collections.abc", "pathlib", "dataclasses", "offnominal.checks",
          "offnominal.errors", "offnominal.backbones.catalogue")  # fmt: skip


class _UnknownError(Exception):
    """A name that is not to be had without importing what is heavy."""


def stand_in(module: str, name: str) -> type:
    """A class that has the signature, documentation and class attributes of another.

    Raises
    ------
    LookupError
        If it cannot be read: it is of another package, has no source, or is not written plainly.
    """
    if module.partition(".")[0] != _OWN:
        raise LookupError(f"{module} is of another package")
    try:
        found = _value(module, name)
    except Exception as error:  # a short cut: whatever is in its way, there is the class itself
        raise LookupError(f"{module}:{name} cannot be read ({error})") from error
    if not isinstance(found, type):
        raise LookupError(f"{module}:{name} is no class")
    return found


def option_defaults(kind: type) -> dict[str, Any]:
    """The arguments of a constructor and their defaults, those of its bases first.

    A subclass names its own arguments and passes the rest on to its base as ``**options``.
    """
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" not in vars(base) or base.__module__.partition(".")[0] == "torch":
            continue
        for parameter in inspect.signature(vars(base)["__init__"]).parameters.values():
            if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                found[parameter.name] = parameter.default
    found.pop("args", None)  # object's own
    return found


@cache
def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    source = getattr(spec.loader, "get_source", None) if spec else None
    text: str | None = source(module) if source else None
    if text is None:
        raise _UnknownError(f"{module} has no source")
    return ast.parse(text)


@cache
def _bound(module: str) -> dict[str, ast.stmt]:
    """The statement that gives each name of a module its meaning, the last one."""
    found: dict[str, ast.stmt] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {one.id: node for one in node.targets if isinstance(one, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


@cache  # all of it: a base that is read twice would be two, and stand twice among its heirs' bases
def _value(module: str, name: str) -> Any:
    """What a name means in a module: the value, or a stand-in for a class."""
    if module in _LIGHT:
        return getattr(import_module(module), name)
    node = _bound(module).get(name)
    if isinstance(node, ast.ImportFrom) and node.module:
        original = next(one.name for one in node.names if (one.asname or one.name) == name)
        if node.module.partition(".")[0] == _OWN or node.module in _LIGHT:
            return _value(node.module, original)
    if isinstance(node, ast.ClassDef):
        return _class(module, node)
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        return _evaluated(module, node.value)
    if node is None and hasattr(builtins, name):
        return getattr(builtins, name)
    raise _UnknownError(f"{name} in {module}")


def _evaluated(module: str, node: ast.expr) -> Any:
    inner = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)
             and isinstance(one.ctx, ast.Store)}  # fmt: skip
    names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} - inner
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and not hasattr(builtins, getattr(one.func, "id", "")):
            raise _UnknownError(ast.unparse(node))
    known = {name: _value(module, name) for name in names}
    try:
        return eval(compile(ast.Expression(node), module, "eval"), known)
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _UnknownError(ast.unparse(node)) from error


def _class(module: str, node: ast.ClassDef) -> type:
    bases = []
    for base in node.bases:
        try:
            found = _evaluated(module, base)
        except _UnknownError:
            continue  # torch's, which has no options
        if isinstance(found, type):
            bases.append(found)
    body: dict[str, Any] = {"__doc__": ast.get_docstring(node, clean=False), "__module__": module}
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.value:
            try:
                body[one.target.id] = _evaluated(module, one.value)
            except _UnknownError:
                continue
        elif isinstance(one, ast.FunctionDef) and one.name == "__init__":
            body["__init__"] = _constructor(module, one)
    return type(node.name, tuple(bases), body)


def _constructor(module: str, node: ast.FunctionDef) -> Any:
    """A function of a constructor's signature that does nothing."""
    names: dict[str, Any] = {"Any": Any}
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    defaults = [*node.args.defaults, *node.args.kw_defaults]
    for part in (*defaults, *(each.annotation for each in every)):
        for one in ast.walk(part) if part is not None else ():
            if isinstance(one, ast.Name):
                names[one.id] = _value(module, one.id)
    made = ast.FunctionDef("__init__", node.args, [ast.Pass()], [], node.returns)
    exec(compile(ast.fix_missing_locations(ast.Module([made], [])), module, "exec"), names)
    return names["__init__"]
