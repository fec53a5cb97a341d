"""``python -m dp4tl_fast.pretrain``: train on a source, or on a selection of it, and measure."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast import cli
from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import UsageError
from dp4tl_fast.files import npy_bytes, write_atomically
from dp4tl_fast.run_folder import Log, check_folder, settings_of, summarise
from dp4tl_fast.selection import Selection

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.loaders import BaseLoader
    from dp4tl_fast.training.loop import Normalise, Run


@dataclass(kw_only=True)
class PretrainConfig:
    """What to train on, how, and where to put it.

    Args:
        source: Source .beton (from `dp4tl-fast convert`).
        out: Run folder to make: config.yaml, metrics.jsonl, summary.json, checkpoint/, TensorBoard events.
        val: Validation .beton; its classes are pruned like the source's.
        selection: Selection from `dp4tl-fast prune`; without it the whole source is read.
        arch: small-16, small-32-full, ... (for 32 to 64 pixels), or any torchvision classifier, e.g. resnet18.
        backend: What reads the .beton: native, ffcv, dali or torchvision (slow).
        objective: What is learned: supervised, moco (self-supervised, two views from one read) or adversarial.
        epochs: Passes over the surviving records.
        batch_size: Images a step.
        size: Side of the training images in pixels.
        end_size: Side of the training images in the last epochs (progressive resolution); 0 keeps --size throughout.
        end_size_from: First epoch, from 0, with --end-size.
        val_size: Side of the validation images; 0 is the last training side.
        min_scale: Smallest area share of the random resized crop; 1 trains on whole images.
        flip: Mirror half of the training images.
        optimizer: sgd (momentum 0.9) or adamw.
        lr: Peak learning rate.
        weight_decay: L2 penalty on all weights but biases and normalisation.
        schedule: triangular (the paper's), cosine or constant.
        warmup_epochs: Epochs until the peak learning rate.
        label_smoothing: Share of the target spread over all classes.
        moco_queue: Earlier keys that a MoCo query is told from.
        moco_momentum: How slowly MoCo's key encoder follows.
        moco_temperature: Of MoCo's softmax.
        adv_eps: Radius of the adversarial ball, in 1/255 of the pixel range.
        adv_steps: Attack steps; 1 is the fast single-step variant.
        adv_norm: linf or l2.
        forgetting: Also count how often each record is forgotten (forgetting.npy), for `dp4tl-fast prune --method forgetting`.
        precision: auto, fp32, bf16 or fp16.
        device: auto, cpu, cuda, cuda:1, ...
        workers: Loader threads; 0 is one a core.
        seed: Of weights, order and augmentation.
        compact_labels: Renumber the surviving classes 0, 1, ... and shrink the head to them (the paper keeps the ids).
        val_every: Validate after every so many epochs, and after the last.
        checkpoint_every: Save after every so many epochs, and after the last.
        tensorboard: Write TensorBoard events.
        resume: Go on from the run folder's newest checkpoint.
    """

    source: str
    out: str
    val: str | None = None
    selection: str | None = None
    arch: str = "resnet18"
    backend: str = "native"
    objective: str = "supervised"
    epochs: int = 16
    batch_size: int = 256
    size: int = 160
    end_size: int = 0
    end_size_from: int = 0
    val_size: int = 0
    min_scale: float = 0.25
    flip: bool = True
    optimizer: str = "sgd"
    lr: float = 0.5
    weight_decay: float = 5e-5
    schedule: str = "triangular"
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.0
    moco_queue: int = 65536
    moco_momentum: float = 0.999
    moco_temperature: float = 0.2
    adv_eps: float = 3.0
    adv_steps: int = 3
    adv_norm: str = "linf"
    forgetting: bool = False
    precision: str = "auto"
    device: str = "auto"
    workers: int = 0
    seed: int = 0
    compact_labels: bool = False
    val_every: int = 1
    checkpoint_every: int = 1
    tensorboard: bool = True
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "val_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: must be above 0")
        if self.objective not in OBJECTIVES:
            raise UsageError(f"--objective {self.objective}: known are {', '.join(OBJECTIVES)}")
        if self.forgetting and self.objective != "supervised":
            raise UsageError(f"--forgetting: counts misclassifications while training supervised, not {self.objective}")
        if self.objective == "moco" and self.val:
            raise UsageError("--val: moco trains no classifier to validate. Use `dp4tl-fast finetune` on the result")
        if self.adv_norm not in ("linf", "l2") or self.adv_steps < 1 or not self.adv_eps > 0:
            raise UsageError("--adv-norm must be linf or l2, --adv-steps at least 1, --adv-eps above 0")
        if self.moco_queue < 1 or not 0 <= self.moco_momentum <= 1 or not self.moco_temperature > 0:
            raise UsageError("--moco-queue must be at least 1, --moco-momentum from 0 to 1, --moco-temperature above 0")
        if self.optimizer not in ("sgd", "adamw"):
            raise UsageError(f"--optimizer {self.optimizer}: known are sgd, adamw")


OBJECTIVES = ("supervised", "moco", "adversarial")


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a network on the surviving classes of a source and measure what it cost.

    Reads only the records of the selection. Interrupted runs (Ctrl-C, SIGTERM, a crash) go on with --resume. Shipped recipes,
    for --config NAME: resnet18, resnet50, resnet101, resnet152, vit_b_16 and adversarial_resnet18 (the paper's),
    moco_v2_resnet50, small_32px.
    """
    source = Beton(config.source)
    selection = Selection.load(config.selection) if config.selection else None
    if selection is not None:
        selection.check(source)
    out, settings = Path(config.out), settings_of(config, selection)
    finished = check_folder(out, settings, config.resume)
    if finished is not None:
        cli.message(f"{out}: this run is complete; nothing to do")
        return finished

    from dp4tl_fast.batches import open_train

    learner = build(config, source, selection)
    with open_train(config, source, selection, learner.run.objective.views) as loader:
        if len(loader) == 0:
            raise UsageError(
                f"--batch-size {config.batch_size}: larger than the {len(loader.records)} surviving records of {source.path}"
            )
        _train(config, settings, selection, learner, loader)
    if config.forgetting:
        write_atomically(out / "forgetting.npy", npy_bytes(learner.run.objective.counts()))  # type: ignore[attr-defined]
    summary = summarise(out, config, source, selection, learner.precision)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


@dataclass
class Learner:
    """What is trained, and how batches reach it."""

    run: Run
    normalise: Normalise
    precision: torch.dtype | None
    meta: dict[str, Any]  # what a checkpoint says of its network


def build(config: PretrainConfig, source: Beton, selection: Selection | None) -> Learner:
    """Network, objective and optimiser on their device, freshly initialised from the seed."""
    import torch

    from dp4tl_fast import models
    from dp4tl_fast.batches import eval_size
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
    from dp4tl_fast.training import loop
    from dp4tl_fast.training.device import pick_device, pick_precision

    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    torch.manual_seed(config.seed)
    classes = selection.kept_classes if selection else list(range(source.num_classes))
    num_classes = len(classes) if config.compact_labels else source.num_classes
    model = models.build(config.arch, num_classes).to(device)
    objective = make_objective(config, model, classes, source).to(device)
    optimizer = make_optimizer((model, objective), config.optimizer, config.lr, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    meta = {
        "arch": config.arch,
        "num_classes": num_classes,
        "size": eval_size(config),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "classes": classes if config.compact_labels else None,
        "source": source.fingerprint,
    }
    run = loop.Run(model, objective, optimizer, scaler)
    return Learner(run, loop.Normalise(IMAGENET_MEAN, IMAGENET_STD, device), precision, meta)


def _train(
    config: PretrainConfig, settings: dict[str, Any], selection: Selection | None, learner: Learner, loader: BaseLoader
) -> None:
    """Train to the end, or save and raise ``cli.Terminated``."""
    import yaml

    from dp4tl_fast.batches import open_eval, size_at
    from dp4tl_fast.training import checkpoint, loop
    from dp4tl_fast.training.schedule import learning_rate

    out, run, objective = Path(config.out), learner.run, learner.run.objective
    total, warmup = len(loader) * config.epochs, round(len(loader) * config.warmup_epochs)
    if config.resume:
        _resume(out, config, run, loader, total)

    def save() -> None:
        checkpoint.save(out / "checkpoint", run.step, run.model, learner.meta, run.state_dict(loader), keep=2)

    def grow() -> None:
        if loader.spec.size != size_at(run.epoch, config):
            loader.set_size(size_at(run.epoch, config))

    def validate() -> dict[str, float]:
        assert config.val is not None
        with open_eval(config.val, selection, config) as val:
            found = loop.evaluate(run.model, val, learner.normalise, objective.score)  # type: ignore[attr-defined]
        return {f"val_{name}": value for name, value in found.items()}

    def on_epoch(run: Run, metrics: dict[str, float]) -> None:
        last = run.epoch == config.epochs
        if config.val and (last or run.epoch % config.val_every == 0):
            metrics.update(validate())
        log.epoch(metrics)
        if last or run.epoch % config.checkpoint_every == 0:
            save()
        grow()

    def on_step(run: Run) -> bool:
        log.step(run)
        return stopped()

    def rate(step: int) -> float:
        return learning_rate(step, schedule=config.schedule, peak=config.lr, total_steps=total, warmup_steps=warmup)

    grow()
    write_atomically(out / "config.yaml", yaml.safe_dump(settings, sort_keys=False))  # only now: all input is good
    with loop.graceful_stop() as stopped, Log(out, config, total, run) as log:
        done = loop.train(
            run,
            objective.watch(loader) if config.forgetting else loader,  # type: ignore[attr-defined]
            learner.normalise,
            rate,
            epochs=config.epochs,
            precision=learner.precision,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if not done:
        save()
        raise cli.Terminated(f"{out}: saved at step {run.step} of {total}; go on with --resume")


def _resume(out: Path, config: PretrainConfig, run: Run, loader: BaseLoader, total: int) -> None:
    """Load the newest checkpoint, if there is one."""
    from dp4tl_fast.training import checkpoint

    found = checkpoint.checkpoints(out / "checkpoint")
    if found:
        tensors, _ = checkpoint.read_weights(found[-1])
        checkpoint.load_into(run.model, tensors, f"{found[-1]} ({config.arch})")
        run.load_state_dict(checkpoint.load_state(found[-1]), loader)
        cli.message(f"resuming {out} at epoch {run.epoch}, step {run.step} of {total}")


def make_objective(config: PretrainConfig, model: Any, classes: list[int], source: Beton) -> Any:
    """The objective as a module: its parameters are trained, its buffers checkpointed."""
    import torch

    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD

    if config.objective == "moco":
        from dp4tl_fast.training.moco import MoCo

        return MoCo(
            model, mean=IMAGENET_MEAN, std=IMAGENET_STD, queue=config.moco_queue, momentum=config.moco_momentum,
            temperature=config.moco_temperature,
        )  # fmt: skip
    renumber = None
    if config.compact_labels:
        renumber = torch.full((source.num_classes,), -1)
        renumber[classes] = torch.arange(len(classes))
    if config.objective == "adversarial":
        from dp4tl_fast.training.adversarial import Adversarial

        return Adversarial(
            eps=config.adv_eps / 255, steps=config.adv_steps, norm=config.adv_norm, mean=IMAGENET_MEAN, std=IMAGENET_STD,
            label_smoothing=config.label_smoothing, renumber=renumber,
        )  # fmt: skip
    from dp4tl_fast.training.supervised import Supervised

    plain = Supervised(config.label_smoothing, renumber)
    if config.forgetting:
        from dp4tl_fast.training.forgetting import Forgetting

        return Forgetting(plain, source.index)
    return plain


def make_optimizer(modules: Sequence[Any], name: str, lr: float, weight_decay: float) -> Any:
    """SGD with momentum 0.9 or AdamW; biases and normalisation are not decayed."""
    import torch

    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(pretrain, argv)


if __name__ == "__main__":
    sys.exit(main())
