"""The rooms of the house and the arrows between them, as docs/architecture.md lists them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dp4tl_fast

ROOT = Path(dp4tl_fast.__file__).parent
MAP = ROOT.parent / "docs/architecture.md"
OWNED = {"ffcv": "ffcv", "nvidia": "dali", "triton": "triton", "ray": "ray"}  # library -> part of the one module that may import it


def rooms():
    """``{room: rooms it may import}``, from top to bottom; ``commands`` may import all others."""
    table = MAP.read_text().split("| room | holds | imports |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \|.*\| ([\w ]*)\|$", table, flags=re.MULTILINE)
    listed = {room: set(imports.split()) for room, imports in rows}
    return {room: set(listed) - {"commands"} if imports == {"all"} else imports for room, imports in listed.items()}


def modules():
    found = {*ROOT.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")}  # the second is a link, which rglob need not follow
    return sorted(p for p in found if "csrc" not in p.parts)


def room_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "commands"


def imported(path):
    """Dotted names a module imports, at any depth, except under TYPE_CHECKING."""
    names = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.update(f"{node.module}.{a.name}" for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def test_the_map_goes_one_way():
    """An arrow of the map leads to a room further down: so there is no cycle."""
    order = list(rooms())
    for i, (room, imports) in enumerate(rooms().items()):
        assert imports <= set(order[i + 1 :]), f"{room} imports {imports - set(order[i + 1 :])}, which is not below it"


def test_every_room_is_on_the_map():
    assert {room_of(p) for p in modules()} == set(rooms())
    assert set(rooms()) - {"commands"} == {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    room = room_of(path)
    if path == ROOT / "__init__.py":
        return  # the front door names its rooms as text; test_front_door.py opens all of them
    for name in imported(path):
        if name.startswith("dp4tl_fast.") and name != "dp4tl_fast.__version__":
            other = name.split(".")[1]
            other = other if (ROOT / other).is_dir() else "commands"
            assert other in rooms()[room] | ({room} if room != "commands" else set()), f"{room} must not import {name}"


def test_every_arrow_of_the_map_is_there():
    """What a room may import is no more than it does."""
    there = {room: set() for room in rooms()}
    for path in modules():
        tree = path.read_text()  # also what is imported for type checking
        there[room_of(path)] |= {name for name in re.findall(r"(?:from|import) dp4tl_fast\.(\w+)", tree) if (ROOT / name).is_dir()}
    for room, imports in rooms().items():
        assert room == "commands" or imports == there[room] - {room}, f"{room}: {imports ^ (there[room] - {room})}"


def test_the_top_holds_commands_alone():
    from dp4tl_fast.__main__ import COMMANDS

    top = {p.stem for p in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert top <= set(COMMANDS) and set(COMMANDS) - top == {name for name in COMMANDS if (ROOT / name / "__main__.py").exists()}
    for name in top:
        assert "def main(" in (ROOT / f"{name}.py").read_text()


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_have_one_home(path):
    for name in imported(path):
        owner = OWNED.get(name.split(".")[0])
        assert owner is None or any(owner in part for part in path.relative_to(ROOT).parts), f"{path} imports {name}"


def test_import_is_cheap():
    code = (
        "import sys, dp4tl_fast, dp4tl_fast.loaders, dp4tl_fast.beton\n"
        "print([m for m in ('torch', 'ffcv', 'nvidia.dali', 'triton') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
