"""The Triton kernels compile for a Hopper GPU, on any machine: the interpreter of the other tests runs no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Run without TRITON_INTERPRET, so in a process of its own. Prints, for each kernel, shared memory and what the PTX uses.
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dp4tl_fast.kernels.cluster_sums import triton_impl as clusters
from dp4tl_fast.kernels.label_counts import triton_impl as labels, tuning as label_tuning
from dp4tl_fast.kernels.linear_argmax import triton_impl as linear, tuning

def compiled(kernel, arguments, constants, warps, stages):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else arguments[name] for name in names}
    plain = ("rows", "columns", "class_units", "row_stride_units", "cells", "parts")
    aligned = [n for n in names if n not in constants and n not in plain and not arguments[n].startswith("tensordesc")]
    source = ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})
    ptx = built.asm["ptx"]
    uses = {"wgmma": "wgmma.mma_async", "tma": "cp.async.bulk.tensor", "wide": "ld.global.v4.b32"}
    return {"shared": built.metadata.shared, **{name: code in ptx for name, code in uses.items()}}

results = {}
for dtype, size, precision in (("bf16", 2, "ieee"), ("fp16", 2, "ieee"), ("fp32", 4, "tf32x3")):
    pointer = f"*{dtype}"
    tile = tuning.pick(size, 1000, 232448)  # the shared memory of an H100 or H200
    arguments = {"x": f"tensordesc<{dtype}[{tile.rows}, {tile.depth}]>", "w": f"tensordesc<{dtype}[{tile.columns}, {tile.depth}]>",
                 "index": "*i32"} | dict.fromkeys(("offset", "value"), "*fp32")
    arguments |= dict.fromkeys(("rows", "columns", "depth", "parts"), "i32")
    constants = {"PRECISION": precision, "WIDEN": False,
                 "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns, "BLOCK_DEPTH": tile.depth}
    built = compiled(linear._kernel, arguments, constants, tile.warps, tile.stages)
    results[f"linear_argmax-{dtype}"] = built | {"planned": tile.shared_bytes(size)}
    arguments = dict.fromkeys(("group", "counts", "index"), "*i64") | {"part_index": "*i32"}
    arguments |= dict.fromkeys(("part_value", "value"), "*fp32")
    arguments |= dict.fromkeys(("rows", "columns", "parts", "cells", "copies"), "i32")
    constants = {"HAS_GROUP": True, "BLOCK_ROWS": linear.COUNT_ROWS}
    results[f"linear_argmax-count-{dtype}"] = compiled(linear._count, arguments, constants, 4, 3)
    height, width = label_tuning.block_shape(label_tuning.DEFAULT, 1000)
    arguments = {"logits": pointer, "group": "*i64", "counts": "*i64", "nan_rank": "*i64"} | dict.fromkeys(
        ("rows", "class_units", "row_stride_units", "cells", "copies"), "i32")
    constants = {"class_stride": 1, "UNIT": 8, "HAS_GROUP": True, "BLOCK_ROWS": height, "BLOCK_CLASSES": width}
    results[f"label_counts-{dtype}"] = compiled(labels._kernel, arguments, constants, label_tuning.DEFAULT.warps, 3)
    arguments = {"x": pointer, "order": "*i64", "start": "*i64", "sums": "*fp64", "depth": "i32", "row_stride": "i32"}
    constants = {"depth_stride": 1, "BLOCK_ROWS": clusters.BLOCK_ROWS, "BLOCK_DEPTH": clusters.BLOCK_DEPTH}
    results[f"cluster_sums-{dtype}"] = compiled(clusters._kernel, arguments, constants, 4, 3)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    clean["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=clean, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_kernels_compile_for_hopper(kernels, dtype):
    argmax = kernels[f"linear_argmax-{dtype}"]
    assert argmax["wgmma"]  # the tensor cores, also for float32 in three TF32 products
    assert argmax["tma"]
    assert argmax["shared"] <= argmax["planned"]  # what `pick` compares with the GPU's shared memory
    assert kernels[f"label_counts-{dtype}"]["shared"] < 2**14
    assert kernels[f"label_counts-{dtype}"]["wide"]  # 16 bytes at once, although 1,000 is no multiple of 16
    assert kernels[f"linear_argmax-count-{dtype}"]["shared"] < 2**14
    assert kernels[f"cluster_sums-{dtype}"]["shared"] < 2**14
