"""The order of the rooms: imports run down, no file depends on itself, and tasks are named in their own rooms only."""

import ast
import graphlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "dashvlm"
# From top to bottom: a room may import from the rooms below it and from itself.
ROOMS = (
    "verbs", "sweep", "reproductions", "report", "predictions", "engine", "shortcuts", "labels", "objectives",
    "training", "tasks", "backbones", "endpoint", "figures", "tables", "metrics", "data", "text", "config", "safety",
    "errors",
)  # fmt: skip
VERBS = {"__main__", "train", "evaluate", "predict", "inspect", "label", "report.__main__", "export", "score", "api"}
TASKS = sorted(p.name for p in (PACKAGE / "tasks").iterdir() if (p / "__init__.py").is_file())
ELSEWHERE = {
    # Words of other people's files: a column, a key, a class.
    "caption": {"data/formats/bvpi.py", "data/formats/bvpi_build.py", "data/formats/synthetic.py",
                "data/formats/messages.py", "engine/similarities.py",
                "predictions/truth.py"},
    "scene": {"data/formats/nexar.py", "data/formats/synthetic.py"},
    "crash": {"tables/cells.py", "data/formats/jsonl.py"},
}  # fmt: skip
"""Word -> files where it names something else than a task."""


def modules():
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(path):
    """Every module of the package that a file imports, within functions and for types too."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in (n.removeprefix("dashvlm.") for n in names if n.startswith("dashvlm.")):
            yield name if name in known else name.rpartition(".")[0]


def room(module):
    return "verbs" if module in VERBS else module.split(".")[0]


def test_no_import_goes_up():
    wrong = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in imports(path)
        if module != "__init__" and other and ROOMS.index(room(other)) < ROOMS.index(room(module))
    ]
    assert wrong == []


def test_every_module_has_a_room():
    assert {room(m) for m in modules() if m != "__init__"} == set(ROOMS)


def test_no_circle_of_files():
    graph = {module: {o for o in imports(path) if o and o != module} for module, path in modules().items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("task", [t for t in TASKS if t != "binary"])
def test_a_task_is_named_in_its_own_room_only(task):
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == task
        and room(".".join(path.relative_to(PACKAGE).with_suffix("").parts)) not in ("tasks", "reproductions")
        and path.relative_to(PACKAGE).as_posix() not in ELSEWHERE.get(task, ())
    ]  # fmt: skip
    assert found == []


def test_kinds_of_evaluation_are_named_in_tasks_only():
    from dashvlm.tasks.evaluation import evaluations

    kinds = set(evaluations()) - set(TASKS) | {"binary"}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.Dict)
        for value in ast.walk(node)
        if isinstance(value, ast.Constant) and value.value in kinds - {"answers"}
        and path.relative_to(PACKAGE).parts[0] not in ("tasks", "reproductions")
    ]  # fmt: skip
    assert found == []


def test_no_file_is_called_utils():
    assert not [p for p in Path(PACKAGE).rglob("*.py") if p.stem in ("utils", "helpers", "common", "misc")]


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    declared = {re.split(r"[^A-Za-z0-9._-]", word)[0].lower().replace("_", "-") for word in words}
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    known = importlib.metadata.packages_distributions()
    foreign = names - set(sys.stdlib_module_names) - {"dashvlm", "lightning_fabric"}  # the last comes with Lightning
    lacking = [n for n in foreign if not {d.lower().replace("_", "-") for d in known.get(n, [n])} & declared]
    assert lacking == []
