"""The structure of the package, read from its source: who imports whom, who reaches into whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import offnominal

ROOT = Path(offnominal.__file__).parent
GROUND = {
    *(
        "errors",
        "extras",
        "text",
        "atomic",
        "paths",
        "prefetch",
        "pictures",
        "images",
        "sizing",
        "views",
    ),
    *(
        "captions",
        "checks",
        "depths",
        "filekinds",
        "jpeg",
        "labelling",
        "opinions",
        "pixel_data",
        "rotations",
        "sixteen_bits",
        "upright",
    ),
    *("sources", "tensors", "regions", "warping", "show", "exchange", "progress"),
    *("scoring", "good_scores", "calibration", "prediction", "modelfile", "_version", "scans"),
}
# What stands on detectors and is imported by nothing but the command line and whole paths.
USERS = {"explain", "benchmark", "report", "export", "scale", "station", "cli"}
FAMILIES = {
    path.name for path in (ROOT / "detectors").iterdir() if path.is_dir() and path.name[0] != "_"
}
# What predicting takes beside the ground and its detector: it must stand without these as well.
HEAVY = {"torch", "torchvision", "timm", "cv2", "scipy"}
LIGHT = [
    *("synthesis.sizes", "detectors.made_scores", "detectors.registry", "metrics.regions"),
    *("explain.match", "explain.picture", "report.page", "report.gallery", "report.inspection"),
    *("cli.writer", "cli.results", "cli.predict", "cli.explain", "cli.calibrate", "cli.grow"),
    # Methods with a memory bank: all of them but for their networks.
    *("memory", "memory.coreset", "memory.leave_one_out", "foreground", "orientation"),
    *("detectors.masked", "detectors.fusion", "detectors.batch.anomalydino_batched"),
    *(f"detectors.memory_bank.{name}" for name in ("anomalydino", "multilayer", "patchcore")),
    *("detectors.memory_bank.softpatch", "explain", "explain.explanation"),
    *("suggestions", "cli.suggest"),
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name: ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
    if (name := name_of(path))  # the package itself only lists public names
}


def imports(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports, in functions and for typing as well."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [one for one in deeper if one.removeprefix("offnominal.") in SOURCES]
            names = known if len(known) == len(deeper) else [node.module, *known]
        found |= {name.removeprefix("offnominal.") for name in names if "offnominal." in name}
    return found & SOURCES.keys()


GRAPH = {name: imports(tree) - {name} for name, tree in SOURCES.items()}


def top(name: str) -> str:
    return name.partition(".")[0]


def test_no_circle() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(f"imports go round: {' -> '.join(error.args[1])}")


def test_the_ground_imports_the_ground_only() -> None:
    wrong = {
        f"{name} imports {one}"
        for name in GROUND & GRAPH.keys()
        for one in GRAPH[name]
        if top(one) not in GROUND
    }
    assert not wrong


@pytest.mark.parametrize("layer", ["memory", "backbones", "training", "foreground"])
def test_what_lies_below_knows_no_detector(layer: str) -> None:
    wrong = {
        f"{name} imports {one}"
        for name, found in GRAPH.items()
        for one in found
        if top(name) == layer and top(one) in {"detectors", *USERS}
    }
    assert not wrong


def test_the_base_knows_no_heir() -> None:
    shared = {n for n in GRAPH if top(n) == "detectors" and n.count(".") == 1}
    shared -= {f"detectors.{n}" for n in ("registry", "ensemble", "chat", "late_fusion", "members")}
    wrong = {
        f"{name} imports {one}"
        for name in shared
        for one in GRAPH[name]
        if one.startswith("detectors.") and one not in shared
    }
    assert not wrong


def test_families_do_not_know_one_another() -> None:
    def family(name: str) -> str | None:
        parts = name.split(".")
        return parts[1] if parts[0] == "detectors" and parts[1:2] and parts[1] in FAMILIES else None

    wrong = {
        f"{name} imports {one}"
        for name, found in GRAPH.items()
        for one in found
        if family(name) and (family(one) not in (None, family(name)) or top(one) in USERS)
    }
    assert not wrong


def test_what_stands_on_detectors_is_imported_by_nothing_below() -> None:
    wrong = {
        f"{name} imports {one}"
        for name, found in GRAPH.items()
        for one in found
        if top(one) in USERS and top(name) not in {*USERS, "demo", "train", "__main__"}
    }
    assert not wrong


def test_nothing_reaches_into_private_members() -> None:
    wrong = []
    ours = {
        one.attr if isinstance(one, ast.Attribute) else one.name
        for tree in SOURCES.values()
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef)
        for one in ast.walk(kind)
        if isinstance(one, ast.FunctionDef)
        or (isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store))
    }
    for name, tree in SOURCES.items():
        owned: dict[ast.AST, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = {
                    one.attr
                    for one in ast.walk(node)
                    if isinstance(one, ast.Attribute)
                    and isinstance(one.value, ast.Name)
                    and one.value.id in ("self", "cls")
                } | {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                for one in ast.walk(node):
                    owned.setdefault(one, set()).update(own)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("offnominal"):
                wrong += [
                    f"{name}:{node.lineno} imports {alias.name}"
                    for alias in node.names
                    if alias.name.startswith("_") and alias.name not in ("__version__", "_")
                    if alias.name not in SOURCES
                ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            if node.attr not in ours or node.attr == "_replace":  # a library's own
                continue
            itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not itself and node.attr not in owned.get(node, set()):
                wrong.append(f"{name}:{node.lineno} .{node.attr}")
    assert not wrong


def at_import(node: ast.AST) -> Iterator[str]:
    """Packages that a module imports when it is imported itself."""
    for one in ast.iter_child_nodes(node):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(one, ast.If) and "TYPE_CHECKING" in ast.unparse(one.test):
            continue
        if isinstance(one, ast.Import):
            yield from (top(alias.name) for alias in one.names)
        elif isinstance(one, ast.ImportFrom) and one.module:
            yield top(one.module)
        yield from at_import(one)


@pytest.mark.parametrize("name", sorted(GROUND & SOURCES.keys()))
def test_the_ground_needs_no_torch_no_opencv_and_no_scipy(name: str) -> None:
    assert not HEAVY & set(at_import(SOURCES[name]))


def test_a_light_runtime_could_stand_on_the_ground() -> None:
    modules = ", ".join(f"offnominal.{name}" for name in [*sorted(GROUND & SOURCES.keys()), *LIGHT])
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({HEAVY} & sys.modules.keys())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "set()"


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert not {str(path): count for path, count in lengths.items() if count > 400}
