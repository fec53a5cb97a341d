"""What a pretraining run is told: the flags of ``dp4tl-fast pretrain``, the keys of its YAML files."""

from __future__ import annotations

from dataclasses import dataclass

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.training.schedule import SCHEDULES

OBJECTIVES = ("supervised", "moco", "moco_v3", "adversarial")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(kw_only=True)
class PretrainConfig:
    """What to train on, how, and where to put it.

    Args:
        source: Source .beton (from `dp4tl-fast convert`).
        out: Run folder to make: config.yaml, metrics.jsonl, summary.json, checkpoint/, TensorBoard events.
        val: Validation .beton; its classes are pruned like the source's.
        selection: Selection from `dp4tl-fast prune`; without it the whole source is read.
        compare: Selection to measure against the full source: the same recipe on both, one run after the other (full first,
            so that the second finds files and compilers warm), into OUT/full and OUT/NAME of the selection; then a table,
            OUT/report.html and OUT/summary.json. With --resume, another selection joins those already there.
        arch: small-16, small-32-full, ... (for 32 to 64 pixels), or any torchvision classifier, e.g. resnet18.
        backend: What reads the .beton: native, ffcv, dali or torchvision (slow).
        objective: What is learned: supervised, moco or moco_v3 (self-supervised, two views from one read) or adversarial.
        epochs: Passes over the surviving records.
        batch_size: Images a step, over all processes of torchrun.
        accumulate: Parts that each process computes its images of a step in, one after another, to save memory.
        size: Side of the training images in pixels.
        end_size: Side of the training images in the last epochs (progressive resolution); 0 keeps --size throughout.
        end_size_from: First epoch, from 0, with --end-size.
        val_size: Side of the validation images; 0 is the last training side.
        min_scale: Smallest area share of the random resized crop; 1 trains on whole images.
        flip: Mirror half of the training images.
        optimizer: sgd (momentum 0.9) or adamw.
        lr: Peak learning rate.
        lr_batch: Batch size that --lr is meant for: the rate is scaled linearly to --batch-size. 0 takes --lr as it is.
        weight_decay: L2 penalty on all weights but biases and normalisation.
        schedule: triangular (the paper's), cosine or constant.
        warmup_epochs: Epochs until the peak learning rate.
        label_smoothing: Share of the target spread over all classes.
        clip_norm: Largest L2 norm of the gradient; 0 does not clip.
        ema_decay: Also average the weights over steps, e.g. 0.9999 (saved as ema.safetensors, validated beside); 0 does not.
        blur_pool: Blur before every strided convolution (arXiv 1904.11486).
        sync_bn: Batch statistics over all processes; else each uses its own images, as is usual from 32 a process on.
        moco_queue: Earlier keys that a query is told from (moco; moco_v3 has no queue).
        moco_momentum: How slowly MoCo's key encoder follows; moco_v3 starts from it and rises to 1 (0.99 in its paper).
        moco_temperature: Of MoCo's softmax.
        adv_eps: Radius of the adversarial ball, in 1/255 of the pixel range.
        adv_steps: Attack steps; 1 is the fast single-step variant.
        adv_norm: linf or l2.
        forgetting: Also count how often each record is forgotten (forgetting.npy), for `dp4tl-fast prune --method forgetting`.
        precision: auto, fp32, bf16 or fp16 (with loss scaling).
        compile: Compile the network with torch.compile, once for each resolution.
        device: auto, cpu, cuda, cuda:1, ...
        workers: Loader threads; 0 is one a core.
        seed: Of weights, order and augmentation.
        compact_labels: Renumber the surviving classes 0, 1, ... and shrink the head to them (the paper keeps the ids).
        val_every: Validate after every so many epochs, and after the last.
        checkpoint_every: Save after every so many epochs, and after the last.
        keep_last: Checkpoints that stay, newest first; the best (val_top_1, else the lowest loss) stays besides.
        tensorboard: Write TensorBoard events.
        profile: Trace a few steps (trace.json, profile.json) and say what bounds the run.
        resume: Go on from the run folder's newest checkpoint.
    """

    source: str
    out: str
    val: str | None = None
    selection: str | None = None
    compare: str | None = None
    arch: str = "resnet18"
    backend: str = "native"
    objective: str = "supervised"
    epochs: int = 16
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
    moco_queue: int = 65536
    moco_momentum: float = 0.999
    moco_temperature: float = 0.2
    adv_eps: float = 3.0
    adv_steps: int = 3
    adv_norm: str = "linf"
    forgetting: bool = False
    precision: str = "auto"
    compile: bool = False
    device: str = "auto"
    workers: int = 0
    seed: int = 0
    compact_labels: bool = False
    val_every: int = 1
    checkpoint_every: int = 1
    keep_last: int = 2
    tensorboard: bool = True
    profile: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "val_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.compare and self.selection:
            raise UsageError("--compare and --selection: --compare trains on the full source and on its own selection. Drop one")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: must be above 0")
        if self.objective not in OBJECTIVES:
            raise UsageError(f"--objective {self.objective}: known are {', '.join(OBJECTIVES)}")
        if self.forgetting and self.objective != "supervised":
            raise UsageError(f"--forgetting: counts misclassifications while training supervised, not {self.objective}")
        if self.forgetting and (self.selection or self.compare):
            raise UsageError("--forgetting: counts for all of the source, of which a selection leaves records out. Drop one")
        if self.views > 1 and self.val:
            raise UsageError(f"--val: {self.objective} trains no classifier to validate. Use `dp4tl-fast finetune` on the result")
        if self.adv_norm not in ("linf", "l2") or self.adv_steps < 1 or not self.adv_eps > 0:
            raise UsageError("--adv-norm must be linf or l2, --adv-steps at least 1, --adv-eps above 0")
        if self.moco_queue < 1 or not 0 <= self.moco_momentum <= 1 or not self.moco_temperature > 0:
            raise UsageError("--moco-queue must be at least 1, --moco-momentum from 0 to 1, --moco-temperature above 0")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"--optimizer {self.optimizer}: known are {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule}: known are {', '.join(SCHEDULES)}")
        if self.size < 1 or self.end_size < 0 or self.end_size_from < 0 or self.val_size < 0:
            raise UsageError("--size must be at least 1, --end-size, --end-size-from and --val-size at least 0")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.label_smoothing < 1:
            raise UsageError("--ema-decay and --label-smoothing must be at least 0 and below 1")
        if self.clip_norm < 0 or self.lr_batch < 0:
            raise UsageError("--clip-norm and --lr-batch must be at least 0")

    @property
    def views(self) -> int:
        """Augmented views of each image that the objective wants."""
        return 2 if self.objective.startswith("moco") else 1

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of the run."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr
