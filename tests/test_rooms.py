"""The package is built of rooms. A module imports from rooms below its own, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The rooms, lowest first.
ROOMS = (
    "utils",
    "config",
    "image",
    "bids",
    "simulation",
    "models",
    "evaluation",
    "segmentation",
    "training",
    "inference",
    "reports",
    "interfaces",
    "workflows",
    "cli",
)


def find_modules(root: Path) -> dict[str, Path]:
    """Modules of the package by their names."""
    found = {}
    for folder, package in (("iqtflow", ""), ("interfaces", "iqtflow."), ("workflows", "iqtflow.")):
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            name = package + ".".join(part for part in parts if part != "__init__")
            found[name] = path
    return found


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports: at its top, in functions, for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # "from package import name" loads the module of that name where there is one.
            found |= {
                f"{node.module}.{item.name}" if f"{node.module}.{item.name}" in modules else node.module
                for item in node.names
            }
    return {module for module in found if module in modules and module != name}


def room_of(module: str) -> str:
    """Room of a module; empty for the package itself."""
    return "" if "." not in module else module.split(".")[1]


MODULES = find_modules(ROOT)
IMPORTS = {name: imports_of(name, path, MODULES) for name, path in MODULES.items()}


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports that lead from a room to a higher one."""
    height = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{module} imports {other}"
        for module in sorted(imports)
        for other in sorted(imports[module])
        if room_of(other) and room_of(module) and height[room_of(other)] > height[room_of(module)]
    ]


def test_every_module_lies_in_a_room():
    shims = {"", "commands"}
    assert {room_of(module) for module in MODULES} == {*ROOMS, *shims}


def test_imports_lead_downward_only():
    wrong = upward({name: found for name, found in IMPORTS.items() if room_of(name) != "commands"})
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as fault:
        pytest.fail(" -> ".join(fault.args[1]))


def loaded_with(module: str) -> set[str]:
    """All modules that are loaded when this one is imported, without those of functions and type checkers."""
    loaded: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in loaded:
            continue
        loaded.add(name)
        if name in MODULES:
            for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Import):
                    todo += [item.name for item in node.names]
                elif isinstance(node, ast.ImportFrom):
                    todo += [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
    return {name.partition(".")[0] for name in loaded}


def test_training_from_libraries_needs_no_reader_of_images():
    """A machine with a GPU may have PyTorch and Lightning, but not nibabel, nipype or monai."""
    needed = loaded_with("iqtflow.training.trainer") | loaded_with("iqtflow.models.registry")
    assert "lightning" in needed
    assert not needed & {"nibabel", "nipype", "monai", "bids", "ants", "skimage", "pandas", "psutil"}


@pytest.mark.parametrize(
    "text",
    [
        "from iqtflow.cli.main import main",
        "import iqtflow.cli.main",
        "from iqtflow.cli import main",
        "def f():\n    from iqtflow.cli.main import main",
        "if TYPE_CHECKING:\n    from iqtflow.cli.main import main",
    ],
)
def test_each_form_of_an_import_is_seen(tmp_path, text):
    (tmp_path / "files.py").write_text(text)
    found = imports_of("iqtflow.utils.files", tmp_path / "files.py", MODULES)
    assert upward({"iqtflow.utils.files": found}) == ["iqtflow.utils.files imports iqtflow.cli.main"]
