"""Settings of finetuning: the flags of ``dp4tl-fast finetune``, the keys of its YAML files."""

from __future__ import annotations

from dataclasses import dataclass

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.training.placement import Placement

DEFAULTS = {"lp": (50, 1e-2), "ff": (200, 1e-4), "knn": (0, 0.0)}  # epochs and learning rate: the paper's recipes
OPTIMIZERS = ("adam", "sgd")


@dataclass(kw_only=True)
class FinetuneConfig(Placement):
    """What to train on the target, and how.

    Args:
        checkpoint: Run folder, checkpoint folder, or weights file.
        train: Target training .beton, or a data set of torchvision's: ``torchvision:CIFAR10?root=DIR&split=train``, which is
            converted once and kept in .dp4tl-cache beside OUT.
        test: Target test .beton, or likewise ``torchvision:CIFAR10?root=DIR&split=test``.
        out: Folder for summary.json.
        mode: lp, ff or knn.
        arch: Architecture, where the checkpoint does not say.
        epochs: Passes over the target; 0 is the paper's (lp 50, ff 200).
        lr: Peak learning rate; 0 is the paper's for Adam (lp 0.01, ff 0.0001).
        optimizer: adam, or sgd with momentum 0.9.
        weight_decay: L2 penalty on all weights.
        batch_size: Images per step.
        size: Side of the images; 0 is the checkpoint's size for evaluation, else 224.
        min_scale: Smallest area share of the random crop in ff.
        flip: Mirror half of the training images in ff; turn it off for digits and text.
        seeds: Repetitions; seeds are 0, 1, ...
        shots: Train on this many random images per class, drawn anew for each seed; 0 takes all of them.
        groups: CSV with columns index and group for the test records: the accuracy of each group, and the worst one's, as
            Waterbirds wants it (group: bird and background).
        neighbours: Of knn.
        temperature: Of knn: a neighbour weighs exp(cosine / temperature).
        precision: Of ff: auto, fp32, bf16 or fp16.
    """

    checkpoint: str
    train: str
    test: str
    out: str
    mode: str = "lp"
    arch: str | None = None
    epochs: int = 0
    lr: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    batch_size: int = 128
    size: int = 0
    min_scale: float = 0.5
    flip: bool = True
    seeds: int = 3
    shots: int = 0
    groups: str = ""
    neighbours: int = 20
    temperature: float = 0.07
    precision: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("mode", self.mode, DEFAULTS)
        require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("seeds", "batch_size", "neighbours"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("epochs", "lr", "weight_decay", "shots", "size"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(0 < self.min_scale <= 1, "min_scale", self.min_scale, "above 0 and at most 1")
        if self.optimizer == "sgd" and not self.lr:
            raise UsageError("`optimizer=sgd`: needs `lr`; the default is meant for Adam (the paper's sgd has 0.1)")
        self.epochs = self.epochs or DEFAULTS[self.mode][0]
        self.lr = self.lr or DEFAULTS[self.mode][1]
