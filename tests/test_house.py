"""The house keeps its floors: imports point down only, and every example in a docstring runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minitorch_peft
from minitorch_peft import kernels

ROOT = Path(minitorch_peft.__file__).parent
# a part may import from its own floor and from those below it
FLOORS = [
    {"kernels"},
    {"autograd"},
    {"ops", "functional"},
    {"nn", "optim", "quant", "formats"},
    {"models"},
    {"training", "data"},
    {"peft"},
    {"analysis", "prompting", "course"},
    {"cli"},
]
FREE = {"testing", "__init__", "__main__"}  # the front door, and what tests use


def modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages([str(ROOT)], "minitorch_peft.")]
    names += [m.name for m in pkgutil.walk_packages(kernels.__path__, "minitorch_peft.kernels.")]
    return sorted(set(names))


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def floor(name: str) -> int:
    (level,) = [i for i, parts in enumerate(FLOORS) if name in parts]
    return level


def imports(path: Path) -> Iterator[str]:
    """Every module of this package that a file imports, inside functions too, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


@pytest.mark.parametrize("module", [m for m in modules() if part(m) not in FREE])
def test_imports_point_down_only(module):
    source = importlib.util.find_spec(module).origin
    here = floor(part(module))
    for imported in imports(Path(source)):
        if not imported.startswith("minitorch_peft.") or part(imported) in FREE:
            continue
        there = part(imported)
        if there in set().union(*FLOORS):
            assert floor(there) <= here, f"{module} imports {imported}: {there} is above {part(module)}"


@pytest.mark.parametrize("module", modules())
def test_the_examples_in_docstrings_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_importing_the_package_is_light():
    code = "import sys, minitorch_peft; print(*sorted({'numba', 'scipy', 'tokenizers', 'torch'} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
