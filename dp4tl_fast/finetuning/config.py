"""Settings of finetuning: the flags of ``dp4tl-fast finetune``, the keys of its YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.inference.config import TTA
from dp4tl_fast.remote.cache import CacheConfig
from dp4tl_fast.runs.bad_records import BadRecordsConfig
from dp4tl_fast.runs.config import CheckpointConfig, signals
from dp4tl_fast.runs.trackers import TrackingConfig
from dp4tl_fast.training.optimizer import OPTIMIZERS
from dp4tl_fast.training.placement import Placement
from dp4tl_fast.training.schedule import SCHEDULES

DEFAULTS = {"lp": (50, 1e-2), "ff": (200, 1e-4), "knn": (0, 0.0)}  # epochs and learning rate: the paper's recipes
AUGMENT = ("none", "randaugment", "trivialaugment")
MIX = ("none", "mixup", "cutmix")


@dataclass(kw_only=True)
class SaveConfig(CheckpointConfig):
    """When checkpoints are written, and which stay.

    Args:
        every: Save every this many epochs, and after the last.
        keep_last: Checkpoints that stay, newest first; the best stays besides.
    """

    every: int = 10
    keep_last: int = 1


@dataclass(kw_only=True)
class FinetuneConfig(Placement, BadRecordsConfig, TrackingConfig, CacheConfig):
    """What to train on the target, and how.

    Args:
        checkpoint: Run folder, checkpoint folder, or weights file.
        train: Target training .beton, its URL (s3://, gs://, az://, https://), or a data set of torchvision's:
            ``torchvision:CIFAR10?root=DIR&split=train``, which is converted once and kept in .dp4tl-cache beside OUT.
        test: Target test .beton, or likewise ``torchvision:CIFAR10?root=DIR&split=test``.
        out: Run folder to make: config.yaml, summary.json, and a folder for each seed with its metrics and checkpoints.
        mode: lp, ff or knn.
        from_scratch: Train --arch from random weights instead of --checkpoint (mode ff): the control.
        val: Target validation .beton: the best epoch is the one that is best there, and not on the test set.
        val_share: Instead of --val: hold this share of every training class out, drawn anew for each seed.
        arch: Architecture, where the checkpoint does not say.
        epochs: Passes over the target; 0 is the paper's (lp 50, ff 200).
        lr: Peak learning rate; 0 is the paper's for Adam (lp 0.01, ff 0.0001).
        schedule: cosine, triangular, step (a tenth at half and at three quarters of the run) or constant.
        warmup_epochs: Epochs until the peak learning rate.
        optimizer: adam, adamw, or sgd with momentum 0.9.
        weight_decay: L2 penalty on all weights.
        layer_decay: In ff: each block of layers learns this much slower than the one above it, e.g. 0.75; 1 trains all alike.
        label_smoothing: Share of the target spread over all classes.
        clip_norm: Largest L2 norm of the gradient; 0 does not clip.
        ema_decay: Also average the weights over steps, e.g. 0.999 (saved as ema.safetensors, tested beside); 0 does not.
        batch_size: Images per step, over all processes of torchrun.
        accumulate: Parts that each process computes its images of a step in, one after another, to save memory.
        size: Side of the images; 0 is the checkpoint's size for evaluation, else 224.
        min_scale: Smallest area share of the random crop in ff.
        flip: Mirror half of the training images in ff; turn it off for digits and text.
        augment: In ff: none, randaugment or trivialaugment.
        mix: In ff: none, mixup or cutmix, of the images of a batch.
        tta: At test: none, or flip: average the probabilities of each image and its mirror image.
        seeds: Repetitions; seeds are 0, 1, ...
        shots: Train on this many random images per class, drawn anew for each seed; 0 takes all of them.
        groups: CSV with columns index and group for the test records: the accuracy of each group, and the worst one's, as
            Waterbirds wants it (group: bird and background).
        neighbours: Of knn.
        temperature: Of knn: a neighbour weighs exp(cosine / temperature).
        precision: Of ff: auto, fp32, bf16 or fp16.
        compile: Compile the network with torch.compile in ff.
        mean: Mean of the channels that the network wants, three values; the default is the checkpoint's, else ImageNet's.
        std: Standard deviation of the channels, likewise.
        save: When checkpoints are written, and which stay.
        profile: Trace a few steps of each seed (trace.json, profile.json) and say what bounds the run.
        resume: Go on where the folder's seeds stand.
        stop_signals: More signals that save the run and stop it, as SIGTERM and Ctrl-C do: USR1,USR2,HUP.
    """

    train: str
    test: str
    out: str
    checkpoint: str = ""
    mode: str = "lp"
    from_scratch: bool = False
    val: str = ""
    val_share: float = 0.0
    arch: str | None = None
    epochs: int = 0
    lr: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    batch_size: int = 128
    accumulate: int = 1
    size: int = 0
    min_scale: float = 0.5
    flip: bool = True
    augment: str = "none"
    mix: str = "none"
    tta: str = "none"
    seeds: int = 3
    shots: int = 0
    groups: str = ""
    neighbours: int = 20
    temperature: float = 0.07
    precision: str = "auto"
    compile: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    save: SaveConfig = field(default_factory=SaveConfig)
    profile: bool = False
    resume: bool = False
    stop_signals: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        BadRecordsConfig.__post_init__(self)
        TrackingConfig.__post_init__(self)
        CacheConfig.__post_init__(self)
        signals(self.stop_signals)
        require_one_of("mode", self.mode, DEFAULTS)
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENT), ("mix", MIX), ("tta", TTA)):
            require_one_of(name, getattr(self, name), known)
        for name in ("seeds", "batch_size", "neighbours", "accumulate"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("epochs", "lr", "weight_decay", "shots", "size", "clip_norm", "warmup_epochs"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("ema_decay", "label_smoothing", "val_share"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        for name in ("min_scale", "layer_decay"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        self._check_together()
        self.epochs = self.epochs or DEFAULTS[self.mode][0]
        self.lr = self.lr or DEFAULTS[self.mode][1]

    def _check_together(self) -> None:
        """Refuse flags that contradict one another, or that the mode would ignore."""
        if self.from_scratch and (self.checkpoint or not self.arch or self.mode != "ff"):
            raise UsageError("`from_scratch`: trains random weights of `arch` in `mode=ff`; give these two and no `checkpoint`")
        if not self.from_scratch and not self.checkpoint:
            raise UsageError("`checkpoint`: which network? Give a run folder, a checkpoint folder or a weights file")
        if self.val and self.val_share:
            raise UsageError("`val` and `val_share`: both choose the best epoch. Drop one")
        if self.optimizer == "sgd" and not self.lr:
            raise UsageError("`optimizer=sgd`: needs `lr`; the default is meant for Adam (the paper's sgd has 0.1)")
        needs = {"augment": "none", "mix": "none", "layer_decay": 1.0, "compile": False}
        for name, off in needs.items():
            if self.mode != "ff" and getattr(self, name) != off:
                raise UsageError(f"`{name}={getattr(self, name)}`: is of `mode=ff`; {self.mode} trains on fixed features")
        trains = {"val": "", "val_share": 0.0, "ema_decay": 0.0}
        for name, unset in trains.items():
            if self.mode == "knn" and getattr(self, name) != unset:
                raise UsageError(f"`{name}={getattr(self, name)}`: knn trains nothing, so that there is no epoch to choose")
        if self.mode != "ff" and self.tta != "none":
            raise UsageError(f"`tta={self.tta}`: is of `mode=ff`. Use `dp4tl-fast evaluate --tta {self.tta}` on the result")

    @property
    def saving(self) -> CheckpointConfig:
        """When to save, as every training run's plan has it."""
        return self.save

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of the run."""
        return self.lr
