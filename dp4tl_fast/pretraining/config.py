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
        queue: Number of earlier keys kept as negatives (moco only; moco_v3 has no queue).
        momentum: Momentum of the key encoder; higher values make it change more slowly. moco_v3 raises it from this value to 1
            during training (its paper starts at 0.99).
        temperature: Softmax temperature of the contrastive loss.
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
        eps: Radius of the perturbation, in 1/255 of the pixel range.
        steps: Attack steps per image; 1 is the fast single-step variant.
        norm: Norm of the perturbation: linf or l2.
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
        source: Source .beton (from `dp4tl-fast convert`), or its URL (s3://, gs://, az://, https://); from a URL, only the records
            that are needed are fetched.
        out: Run folder to create: config.yaml, metrics.jsonl, summary.json, checkpoint/, TensorBoard events.
        val: Validation .beton, or its URL; its classes are pruned like the source's.
        selection: Selection from `dp4tl-fast prune`; without one, the whole source is used.
        compare: Selection to compare with the full source: trains the same recipe on both, one after the other (the full source
            first, so that the second run finds files and compilers warm), in OUT/full and OUT/NAME, where NAME is the selection's;
            then prints a table and writes OUT/report.html and OUT/summary.json. With --resume, another selection is added to
            those already there.
        arch: small-16, small-32-full, ... (for 32 to 64 pixels), any torchvision classifier, e.g. resnet18, or timm:NAME.
        init: Start from these weights instead of random ones: a run folder, a checkpoint or a weights file of this architecture,
            or published weights (torchvision:NAME, timm:NAME, hf-hub:ORG/NAME). The classifier is kept if it is for the same
            classes.
        objective: supervised, moco or moco_v3 (self-supervised; both views come from one read), or adversarial.
        epochs: Passes over the selected records; 0 uses the selection's number if it was made for a budget (`prune --keep auto
            --budget`), else 16. In the first case, --compare gives the full source the same number of images, but at least one
            epoch.
        epoch_samples: Records per epoch: a new random subset each epoch; no record is repeated until all have been used (RS2,
            arXiv 2305.18424). 0 uses all selected records.
        dynamic: none or infobatch: in each epoch, skip some of the records whose loss was below the mean and give the rest of
            those more weight (arXiv 2303.04947; the last eighth of the epochs, at least the last one, uses all
            records). Supervised only.
        dynamic_skip: Probability that infobatch skips a record whose loss was below the mean.
        batch_size: Images per step, over all processes of torchrun.
        accumulate: Gradient accumulation: each process computes its share of a batch in this many parts, to save memory.
        size: Side of the training images, in pixels.
        end_size: Side of the training images in the last epochs, in pixels (progressive resolution); 0 uses --size throughout.
        end_size_from: First epoch, counted from 0, that uses --end-size; at 0 all epochs use it.
        val_size: Side of the validation images, in pixels; 0 uses the last training size.
        min_scale: Smallest share of an image's area that the random resized crop may take; 1 trains on whole images.
        flip: Mirror each training image with probability 0.5.
        optimizer: sgd (momentum 0.9), adamw or adam.
        lr: Peak learning rate.
        lr_batch: Batch size that --lr is meant for; the learning rate is scaled linearly to --batch-size. 0 uses --lr unchanged.
        weight_decay: Weight decay of all weights except biases and normalisation layers.
        schedule: triangular (the paper's), cosine, step (divided by 10 at half and again at three quarters of the steps after
            warm-up) or constant.
        warmup_epochs: Epochs of warm-up to the peak learning rate; constant has no warm-up.
        label_smoothing: Share of the target probability spread evenly over all classes; 0 is off.
        clip_norm: Clip the gradient to this L2 norm; 0 is off.
        ema_decay: Also keep an exponential moving average of the weights with this decay, e.g. 0.9999 (saved as ema.safetensors
            and validated as well); 0 is off.
        blur_pool: Blur before every strided convolution (arXiv 1904.11486).
        sync_bn: Compute batch-normalisation statistics over all processes. By default each process uses its own images, which is
            usually enough from 32 images per process.
        moco: Settings of MoCo.
        adv: Settings of the attack in adversarial training.
        forgetting: Also count how often each record is forgotten (forgetting.npy), for `dp4tl-fast prune --method forgetting`.
        precision: auto, fp32, bf16 or fp16 (with loss scaling). auto: on a GPU bf16, or fp16 where it has no native bf16; on a
            CPU bf16 where a measurement shows it to be faster, else fp32.
        compile: Compile the network with torch.compile, once for each resolution.
        seed: Random seed for weights, order of records and augmentation.
        compact_labels: Renumber the selected classes 0, 1, ... and shrink the classifier to them. By default class ids stay as they
            are, as in the paper.
        val_every: Validate every this many epochs, and after the last.
        checkpoint: When checkpoints are saved, and which are kept.
        profile: Trace a few steps (trace.json, profile.json) and report what limits the speed of the run.
        resume: Continue from the newest checkpoint in the run folder.
        stop_signals: Further signals on which the run saves and stops, as it does on SIGTERM and Ctrl-C, e.g. USR1,USR2,HUP.
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
            raise UsageError(f"`dynamic={self.dynamic}`: needs each image's loss in supervised training, not {self.objective}")
        for name in ("forgetting", "epoch_samples"):
            if self.dynamic != "none" and getattr(self, name):
                raise UsageError(f"`dynamic={self.dynamic}` and `{name}`: each decides which records an epoch reads. Drop one")
        if self.forgetting and self.epoch_samples:
            raise UsageError("`forgetting`: compares records from epoch to epoch, but `epoch_samples` leaves some out. Drop one")
        if self.forgetting and (self.selection or self.compare):
            raise UsageError("`forgetting`: counts over the whole source, but a selection leaves records out. Drop one")
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
