"""Settings of a pretraining run: the flags of ``dp4tl-fast pretrain``, the keys of its YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.pretraining.objectives import OBJECTIVES
from dp4tl_fast.remote.cache import CacheConfig
from dp4tl_fast.runs.bad_records import BadRecordsConfig
from dp4tl_fast.runs.config import CheckpointConfig, signals
from dp4tl_fast.runs.trackers import TrackingConfig
from dp4tl_fast.training.optimizer import OPTIMIZERS
from dp4tl_fast.training.placement import Placement
from dp4tl_fast.training.schedule import SCHEDULES


@dataclass(kw_only=True)
class MocoConfig:
    """Settings of MoCo.

    Args:
        queue: Earlier keys that a query is told from (moco; moco_v3 has no queue).
        momentum: How slowly the key encoder follows; moco_v3 starts from it and rises to 1 (0.99 in its paper).
        temperature: Of the softmax.
    """

    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2

    def __post_init__(self) -> None:
        require(self.queue >= 1, "moco.queue", self.queue, "at least 1")
        require(0 <= self.momentum <= 1, "moco.momentum", self.momentum, "from 0 to 1")
        require(self.temperature > 0, "moco.temperature", self.temperature, "above 0")


@dataclass(kw_only=True)
class AttackConfig:
    """Settings of the attack in adversarial training.

    Args:
        eps: Radius of the adversarial ball, in 1/255 of the pixel range.
        steps: Attack steps; 1 is the fast single-step variant.
        norm: linf or l2.
    """

    eps: float = 3.0
    steps: int = 3
    norm: str = "linf"

    def __post_init__(self) -> None:
        require(self.eps > 0, "adv.eps", self.eps, "above 0")
        require(self.steps >= 1, "adv.steps", self.steps, "at least 1")
        require_one_of("adv.norm", self.norm, ("linf", "l2"))


@dataclass(kw_only=True)
class PretrainConfig(Placement, BadRecordsConfig, TrackingConfig, CacheConfig):
    """What to train on, how, and where to put it.

    Args:
        source: Source .beton (from `dp4tl-fast convert`), or its URL (s3://, gs://, az://, https://): what survives is fetched.
        out: Run folder to make: config.yaml, metrics.jsonl, summary.json, checkpoint/, TensorBoard events.
        val: Validation .beton, or its URL; its classes are pruned like the source's.
        selection: Selection from `dp4tl-fast prune`; without it the whole source is read.
        compare: Selection to measure against the full source: the same recipe on both, one run after the other (full first,
            so that the second finds files and compilers warm), into OUT/full and OUT/NAME of the selection; then a table,
            OUT/report.html and OUT/summary.json. With --resume, another selection joins those already there.
        arch: small-16, small-32-full, ... (for 32 to 64 pixels), or any torchvision classifier, e.g. resnet18.
        init: Weights to continue from instead of random ones: a run folder, a checkpoint or a weights file of this architecture.
            The classifier is taken over where it is for the same classes.
        objective: What is learned: supervised, moco or moco_v3 (self-supervised, two views from one read) or adversarial.
        epochs: Passes over the surviving records; 0 takes them from the selection, if it was cut for a budget (`prune --keep auto
            --budget`), and else is 16. With --compare the full source then gets as many images.
        epoch_samples: Records per epoch: a fresh random subset every time, which goes on through all of them before any comes
            again (RS2, arXiv 2305.18424). 0 reads all surviving records.
        dynamic: none, or infobatch: of the records whose loss was below the mean each epoch skips some, and the others of them
            count for more (arXiv 2303.04947; the last eighth of the epochs reads everything). Supervised only.
        dynamic_skip: Probability that infobatch skips such a record.
        batch_size: Images per step, over all processes of torchrun.
        accumulate: Parts that each process computes its images of a step in, one after another, to save memory.
        size: Side of the training images in pixels.
        end_size: Side of the training images in the last epochs (progressive resolution); 0 keeps --size throughout.
        end_size_from: First epoch, from 0, with --end-size.
        val_size: Side of the validation images; 0 is the last training side.
        min_scale: Smallest area share of the random resized crop; 1 trains on whole images.
        flip: Mirror half of the training images.
        optimizer: sgd (momentum 0.9), adamw or adam.
        lr: Peak learning rate.
        lr_batch: Batch size that --lr is meant for: the rate is scaled linearly to --batch-size. 0 takes --lr as it is.
        weight_decay: L2 penalty on all weights but biases and normalisation.
        schedule: triangular (the paper's), cosine, step (a tenth at half and at three quarters of the run) or constant.
        warmup_epochs: Epochs until the peak learning rate.
        label_smoothing: Share of the target spread over all classes.
        clip_norm: Largest L2 norm of the gradient; 0 does not clip.
        ema_decay: Also average the weights over steps, e.g. 0.9999 (saved as ema.safetensors, validated beside); 0 does not.
        blur_pool: Blur before every strided convolution (arXiv 1904.11486).
        sync_bn: Batch statistics over all processes; else each uses its own images, as is usual from 32 per process on.
        moco: Settings of MoCo.
        adv: Settings of the attack in adversarial training.
        forgetting: Also count how often each record is forgotten (forgetting.npy), for `dp4tl-fast prune --method forgetting`.
        precision: auto (bf16 where it is faster, measured on a CPU), fp32, bf16 or fp16 (with loss scaling).
        compile: Compile the network with torch.compile, once for each resolution.
        seed: Of weights, order and augmentation.
        compact_labels: Renumber the surviving classes 0, 1, ... and shrink the head to them (the paper keeps the ids).
        val_every: Validate every this many epochs, and after the last.
        checkpoint: When checkpoints are written, and which stay.
        profile: Trace a few steps (trace.json, profile.json) and say what bounds the run.
        resume: Continue from the run folder's newest checkpoint.
        stop_signals: More signals that save the run and stop it, as SIGTERM and Ctrl-C do: USR1,USR2,HUP.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "moco_queue": "moco.queue", "moco_momentum": "moco.momentum", "moco_temperature": "moco.temperature",
        "adv_eps": "adv.eps", "adv_steps": "adv.steps", "adv_norm": "adv.norm",
        "checkpoint_every": "checkpoint.every", "keep_last": "checkpoint.keep_last",
    }  # fmt: skip

    source: str
    out: str
    val: str | None = None
    selection: str | None = None
    compare: str | None = None
    arch: str = "resnet18"
    init: str | None = None
    objective: str = "supervised"
    epochs: int = 0
    epoch_samples: int = 0
    dynamic: str = "none"
    dynamic_skip: float = 0.5
    batch_size: int = 256
    accumulate: int = 1
    size: int = 160
    end_size: int = 0
    end_size_from: int = 0
    val_size: int = 0
    min_scale: float = 0.25
    flip: bool = True
    optimizer: str = "sgd"
    lr: float = 0.5
    lr_batch: int = 0
    weight_decay: float = 5e-5
    schedule: str = "triangular"
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    blur_pool: bool = False
    sync_bn: bool = False
    moco: MocoConfig = field(default_factory=MocoConfig)
    adv: AttackConfig = field(default_factory=AttackConfig)
    forgetting: bool = False
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    compact_labels: bool = False
    val_every: int = 1
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    profile: bool = False
    resume: bool = False
    stop_signals: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        BadRecordsConfig.__post_init__(self)
        TrackingConfig.__post_init__(self)
        CacheConfig.__post_init__(self)
        signals(self.stop_signals)
        for name in ("batch_size", "accumulate", "val_every", "size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("epochs", "epoch_samples", "end_size", "end_size_from", "val_size", "clip_norm", "lr_batch"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("ema_decay", "label_smoothing"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        require(self.lr > 0, "lr", self.lr, "above 0")
        require_one_of("objective", self.objective, OBJECTIVES)
        require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        require_one_of("schedule", self.schedule, SCHEDULES)
        if self.compare and self.selection:
            raise UsageError("`compare` and `selection`: `compare` trains on the full source and on its own selection. Drop one")
        if self.forgetting and self.objective != "supervised":
            raise UsageError(f"`forgetting`: counts misclassifications while training supervised, not {self.objective}")
        require_one_of("dynamic", self.dynamic, ("none", "infobatch"))
        require(0 < self.dynamic_skip < 1, "dynamic_skip", self.dynamic_skip, "above 0 and below 1")
        if self.dynamic != "none" and self.objective != "supervised":
            raise UsageError(f"`dynamic={self.dynamic}`: goes by each image's loss in supervised training, not {self.objective}")
        for name in ("forgetting", "epoch_samples"):
            if self.dynamic != "none" and getattr(self, name):
                raise UsageError(f"`dynamic={self.dynamic}` and `{name}`: each decides which records an epoch reads. Drop one")
        if self.forgetting and self.epoch_samples:
            raise UsageError("`forgetting`: compares records from epoch to epoch, and `epoch_samples` leaves some out. Drop one")
        if self.forgetting and (self.selection or self.compare):
            raise UsageError("`forgetting`: counts for all of the source, of which a selection leaves records out. Drop one")
        if self.val and not OBJECTIVES[self.objective].classifies:
            raise UsageError(f"`val`: {self.objective} trains no classifier to validate. Use `dp4tl-fast finetune` on the result")

    @property
    def views(self) -> int:
        """Augmented views of each image that the objective wants."""
        return OBJECTIVES[self.objective].views

    @property
    def saving(self) -> CheckpointConfig:
        """When to save, as every training run's plan has it."""
        return self.checkpoint

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of the run."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr
