"""The rooms of the house and the arrows between them: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dp4tl_fast

ROOT = Path(dp4tl_fast.__file__).parent
COMMANDS = {
    "convert",
    "inspect",
    "prune",
    "pretrain",
    "finetune",
    "report",
    "demo",
    "doctor",
    "compare",
    "relayout",
    "subset",
    "merge",
}
LOW = {"errors", "files", "config", "philox"}
# room -> what it may import from the package, beside itself and LOW
ARROWS = {
    "kernels": set(),
    "beton": {"kernels"},
    "selection": {"beton", "cli"},  # cli for its command
    "loaders": {"beton", "selection", "kernels"},
    "mapping": {"kernels"},
    "training": {"models"},
    "models": set(),
    "sources": {"beton", "kernels", "cli"},
}
OWNED = {"ffcv": "ffcv", "nvidia": "dali", "triton": "triton"}  # library -> part of the one module that may import it


def modules():
    return [p for p in sorted(ROOT.rglob("*.py")) if "csrc" not in p.parts]


def imported(path):
    """Dotted names a module imports, at any depth, except under TYPE_CHECKING."""
    names = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update(f"{node.module}.{a.name}" for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room not in ARROWS:
        return  # commands and what only they use stand on top
    for name in imported(path):
        if name.startswith("dp4tl_fast."):
            other = name.split(".")[1]
            assert other == room or other in LOW | ARROWS[room] | {"__version__"}, f"{room} must not import {name}"


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
