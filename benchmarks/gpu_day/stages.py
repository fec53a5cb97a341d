"""The stages of a day with a GPU, and what to look at when a part of one fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu_day.setting import Setting
from benchmarks.harness import Suite

LIMIT = 8 * 60 - 15  # seconds of a stage, its result file written


@dataclass(frozen=True)
class Part:
    """One process of a stage.

    Attributes:
        name: As results have it.
        module, function: In ``benchmarks.gpu_day``; called with (suite, setting) and ``options``. Imported in the process.
        seconds: Until it is stopped.
        look_at: When it fails.
    """

    name: str
    module: str
    function: str
    seconds: int
    look_at: str
    options: tuple[tuple[str, int], ...] = ()

    def load(self) -> Callable[[Suite, Setting], None]:
        from importlib import import_module

        function = getattr(import_module(f"benchmarks.gpu_day.{self.module}"), self.function)
        return partial(function, **dict(self.options))


@dataclass(frozen=True)
class Stage:
    title: str
    parts: tuple[Part, ...]


_PEERS = "kernels/linear_argmax/triton_impl.py and tuning.py: the fastest `tile` row beside ours; what is `left_out`"
_NETWORK = "benchmarks/gpu_day/networks.py; the share of `synthetic` tells the loader's part from the step's (`pretrain --profile`)"
STAGES = {
    1: Stage("is it right: kernels, pinned loading, preprocessing, AMP, compile, resume", (
        Part("kernels", "checks", "kernels", 150, "the kernel, shape and dtype that it names: kernels/NAME/triton_impl.py"),
        Part("pinned", "checks", "pinned", 60, "dp4tl_fast/loaders/pinned.py and kernels/csrc/core/loader (lent memory)"),
        Part("preprocessing", "checks", "preprocessing", 30, "Normalise in dp4tl_fast/training/loop.py, recolour in views.py"),
        Part("amp", "checks", "amp", 70, "dp4tl_fast/training/loop.py (gradients) and training/device.py (pick_precision)"),
        Part("compile", "checks", "compiled", 100, "dp4tl_fast/pretraining/learner.py (network.compile); TORCH_LOGS=recompiles"),
        Part("resume", "checks", "resume", 50, "dp4tl_fast/training/state.py (what is saved), feed.py (ahead)"),
    )),
    2: Stage("how fast the kernels are, against peers and limits", (
        Part("label_counts", "kernels", "counts", 60, "kernels/label_counts/triton_impl.py and tuning.py"),
        *(
            Part(f"nearest_centroid {k}x{depth}", "kernels", "nearest", 85, _PEERS, (("k", k), ("depth", depth)))
            for k in (1_000, 2_000) for depth in (512, 2_048)
        ),
        Part("nearest_centroid, few rows", "kernels", "few_rows", 30, "recompilation: do_not_specialize in triton_impl.py"),
        Part("nearest_centroid from the host", "kernels", "from_host", 30, "_stream in kernels/linear_argmax/triton_impl.py"),
    )),
    3: Stage("how well it is fed: loaders onto the GPU, ResNet-18 and ResNet-50 from JPEGs", (
        Part("loaders", "loaders", "run", 150, "dp4tl_fast/loaders/NAME.py of the loader that it names; cores of this machine"),
        Part("resnet18", "networks", "resnet18", 150, _NETWORK),
        Part("resnet50", "networks", "resnet50", 160, _NETWORK),
    )),
    4: Stage("the whole pipeline once, small", (
        Part("demo", "end_to_end", "end_to_end", 450, "the command whose message comes last; dp4tl_fast/demo/run.py calls them"),
    )),
}  # fmt: skip
