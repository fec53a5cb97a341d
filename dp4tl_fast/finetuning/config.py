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
        keep_last: Number of newest checkpoints to keep; the best is kept as well.
    """

    every: int = 10
    keep_last: int = 1


@dataclass(kw_only=True)
class FinetuneConfig(Placement, BadRecordsConfig, TrackingConfig, CacheConfig):
    """What to train on the target, and how.

    Args:
        checkpoint: Run folder, checkpoint folder or weights file; or published weights: torchvision:NAME (with --arch), timm:NAME
            or hf-hub:ORG/NAME.
        train: Target training .beton, its URL (s3://, gs://, az://, https://), or a torchvision data set:
            ``torchvision:CIFAR10?root=DIR&split=train``, which is converted once and kept in .dp4tl-cache beside OUT.
        test: Target test .beton, its URL, or ``torchvision:CIFAR10?root=DIR&split=test``.
        out: Run folder to create: config.yaml, summary.json, and a folder for each seed with its metrics and checkpoints.
        mode: lp (linear probe), ff (full finetuning) or knn (nearest neighbours).
        from_scratch: Train --arch from random weights instead of --checkpoint (mode ff), as a control.
        val: Target validation .beton, to choose the best epoch on instead of the test set.
        val_share: Instead of --val: hold out this fraction of every training class for validation, drawn anew for each seed.
        arch: Architecture, if the checkpoint does not name it.
        epochs: Passes over the target; 0 uses the paper's number (lp 50, ff 200).
        lr: Peak learning rate; 0 uses the paper's for Adam (lp 0.01, ff 0.0001). Required with --optimizer sgd.
        schedule: cosine, triangular, step (divided by 10 at half and again at three quarters of the steps after warm-up) or
            constant.
        warmup_epochs: Epochs of warm-up to the peak learning rate; constant has no warm-up.
        optimizer: adam, adamw, or sgd with momentum 0.9.
        weight_decay: Weight decay of all trained weights.
        layer_decay: With ff: multiply the learning rate by this factor, e.g. 0.75, for each block of layers further from the
            output; 1 trains all layers at the same rate.
        label_smoothing: Share of the target probability spread evenly over all classes; 0 is off.
        clip_norm: Clip the gradient to this L2 norm; 0 is off.
        ema_decay: Also keep an exponential moving average of the weights with this decay, e.g. 0.999 (saved as ema.safetensors
            and tested as well); 0 is off.
        batch_size: Images per step, over all processes of torchrun.
        accumulate: Gradient accumulation: each process computes its share of a batch in this many parts, to save memory.
        size: Side of the images, in pixels; 0 uses the size the checkpoint is evaluated at, else 224.
        min_scale: With ff: smallest share of an image's area that the random resized crop may take.
        flip: With ff: mirror each training image with probability 0.5; turn this off for digits and text.
        augment: With ff: none, randaugment or trivialaugment.
        mix: With ff: none, mixup or cutmix, within each batch.
        tta: With ff: test-time augmentation: none or flip, which averages the probabilities of each image and its mirror image.
        seeds: Number of repetitions, with seeds 0, 1, ...; knn without --shots runs once.
        shots: Train on this many random images per class, drawn anew for each seed; 0 uses all of them.
        groups: CSV with the columns index and group for the test records: reports the accuracy of each group and of the worst one,
            as for Waterbirds (group: bird and background).
        neighbours: With knn: number of neighbours.
        temperature: With knn: a neighbour is weighted by exp(cosine similarity / temperature).
        precision: With ff: auto, fp32, bf16 or fp16.
        compile: With ff: compile the network with torch.compile.
        mean: Mean of each channel for normalisation, three values; the default is the checkpoint's, else ImageNet's.
        std: Standard deviation of each channel, likewise.
        save: When checkpoints are saved, and which are kept.
        profile: Trace a few steps of each seed (trace.json, profile.json) and report what limits the speed of the run.
        resume: Continue the seeds in the run folder where they stopped.
        stop_signals: Further signals on which the run saves and stops, as it does on SIGTERM and Ctrl-C, e.g. USR1,USR2,HUP.
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
            raise UsageError("`checkpoint`: is missing. Give a run folder, a checkpoint folder or a weights file")
        if self.val and self.val_share:
            raise UsageError("`val` and `val_share`: both choose the best epoch. Drop one")
        if self.optimizer == "sgd" and not self.lr:
            raise UsageError("`optimizer=sgd`: needs `lr`; the default is meant for Adam (the paper's sgd has 0.1)")
        needs = {"augment": "none", "mix": "none", "layer_decay": 1.0, "compile": False}
        for name, off in needs.items():
            if self.mode != "ff" and getattr(self, name) != off:
                raise UsageError(f"`{name}={getattr(self, name)}`: applies only to `mode=ff`; {self.mode} trains on fixed features")
        trains = {"val": "", "val_share": 0.0, "ema_decay": 0.0}
        for name, unset in trains.items():
            if self.mode == "knn" and getattr(self, name) != unset:
                raise UsageError(f"`{name}={getattr(self, name)}`: does not apply to `mode=knn`, which trains nothing")
        if self.mode != "ff" and self.tta != "none":
            raise UsageError(f"`tta={self.tta}`: applies only to `mode=ff`. Run `dp4tl-fast evaluate --tta {self.tta}` afterwards")

    @property
    def saving(self) -> CheckpointConfig:
        """When to save, as every training run's plan has it."""
        return self.save

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of the run."""
        return self.lr
