"""What a backend cannot do is declared in its module, refused when a loader is opened, and shown in one table."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from contract_cases import spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import BACKENDS, BaseLoader, capabilities, open_loader
from dp4tl_fast.loaders.capabilities import Capabilities, markdown_table


def test_a_gpu_that_is_not_there_is_refused_at_the_start(backend: str, jpegs: Beton) -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(BackendError, match=rf"device '{missing}' does not exist.*device=cpu"):
        open_loader(jpegs, None, spec(device=missing), backend)


LESS = Capabilities(
    summary="", dtypes=("uint8",), transforms=("resize",), records=("jpeg",), on_error=("raise",), views=1
)
UNDECLARED = {
    "dtype": {"dtype": "float16"},
    "transform": {"transform": "center_crop"},
    "on_error": {"on_error": "skip"},
    "device": {"device": "xpu"},
    "views": {"views": 2},
    "exact": {"exact": True},
    "max_ram": {"max_ram": 1 << 30},
}


@pytest.mark.parametrize("what", UNDECLARED)
def test_what_is_not_declared_is_refused(
    backend: str, jpegs: Beton, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        cls: type[BaseLoader] = type(loader)
    monkeypatch.setattr(cls, "capabilities", LESS)
    with pytest.raises(BackendError, match=f"backend '{backend}' .*{what}"):
        open_loader(jpegs, None, spec(**{"transform": "resize", **UNDECLARED[what]}), backend)


@pytest.mark.parametrize("backend", ["ffcv", "dali"])
def test_a_decoder_of_its_own_refuses_to_be_exact(backend: str, jpegs: Beton) -> None:
    with pytest.raises(BackendError, match=f"backend '{backend}' cannot do exact = True"):
        open_loader(jpegs, None, spec(exact=True), backend)


def test_undeclared_records_are_refused(backend: str, by_ffcv: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_loader(by_ffcv, None, spec(transform="resize", dtype="uint8"), backend) as loader:
        before = loader.records
        monkeypatch.setattr(type(loader), "capabilities", LESS)
        with pytest.raises(BackendError, match="records = 'mixed', only jpeg"):
            loader.set_records(None)
        assert loader.records is before
    with pytest.raises(BackendError, match="records = 'mixed', only jpeg"):
        open_loader(by_ffcv, None, spec(transform="resize"), backend)


def test_a_missing_library_is_named_with_the_remedy(jpegs: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, module in {"ffcv": "ffcv", "dali": "nvidia.dali", "torchvision": "torchvision"}.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendError, match=rf"backend '{backend}' needs {module}, not installed.* `pip install"):
            open_loader(jpegs, None, spec(), backend)


def test_an_unknown_backend_lists_the_known_ones(jpegs: Beton) -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'pil'\. Known: native, ffcv, dali, torchvision"):
        open_loader(jpegs, None, spec(), "pil")


def test_capabilities_are_read_without_importing_any_library() -> None:
    code = """
import sys
from dp4tl_fast.loaders import capabilities
print(*capabilities())
print(*(m for m in ("torch", "torchvision", "ffcv", "numba", "nvidia.dali", "cv2") if m in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [" ".join(BACKENDS), ""]


def test_the_table_of_the_readme_and_doctor_has_every_backend() -> None:
    head, rule, *rows = [line.strip("|").split("|") for line in markdown_table(capabilities()).splitlines()]
    assert [name.strip() for name in head] == ["", *BACKENDS]
    assert all(len(row) == len(head) == len(rule) and all(cell.strip() for cell in row) for row in rows)
