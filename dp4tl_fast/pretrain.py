"""``python -m dp4tl_fast.pretrain``: train on a source, or on a selection of it, and measure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast import cli
from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import CheckpointError, UsageError
from dp4tl_fast.files import npy_bytes, write_atomically
from dp4tl_fast.selection import Selection

if TYPE_CHECKING:
    from dp4tl_fast.loaders import BaseLoader
    from dp4tl_fast.training.loop import Run


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

# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_ON_RESUME = {"resume", "out", "workers", "tensorboard", "checkpoint_every", "val_every"}


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
    out = Path(config.out)
    settings = _settings(config, selection)
    finished = _check_folder(out, settings, config.resume)
    if finished is not None:
        cli.message(f"{out}: this run is complete; nothing to do")
        return finished

    import torch
    import yaml

    from dp4tl_fast import models
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
    from dp4tl_fast.training import checkpoint, loop
    from dp4tl_fast.training.device import pick_device, pick_precision
    from dp4tl_fast.training.schedule import learning_rate

    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    torch.manual_seed(config.seed)
    classes = selection.kept_classes if selection else list(range(source.num_classes))
    num_classes = len(classes) if config.compact_labels else source.num_classes
    model = models.build(config.arch, num_classes).to(device)
    objective = make_objective(config, model, classes, source).to(device)
    optimizer = make_optimizer((model, objective), config.optimizer, config.lr, config.weight_decay)
    run = loop.Run(model, objective, optimizer, torch.amp.GradScaler(device.type, enabled=precision == torch.float16))
    normalise = loop.Normalise(IMAGENET_MEAN, IMAGENET_STD, device)
    meta = {
        "arch": config.arch,
        "num_classes": num_classes,
        "size": eval_size(config),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "classes": classes if config.compact_labels else None,
        "source": source.fingerprint,
    }
    with open_train(config, source, selection, objective.views) as loader:
        if len(loader) == 0:
            raise UsageError(
                f"--batch-size {config.batch_size}: larger than the {len(loader.records)} surviving records of {source.path}"
            )
        total, warmup = len(loader) * config.epochs, round(len(loader) * config.warmup_epochs)
        found = checkpoint.checkpoints(out / "checkpoint")
        if config.resume and found:
            tensors, _ = checkpoint.read_weights(found[-1])
            checkpoint.load_into(model, tensors, f"{found[-1]} ({config.arch})")
            run.load_state_dict(checkpoint.load_state(found[-1]), loader)
            cli.message(f"resuming {out} at epoch {run.epoch}, step {run.step} of {total}")

        def save() -> None:
            checkpoint.save(out / "checkpoint", run.step, model, meta, run.state_dict(loader), keep=2)

        def grow(run: loop.Run) -> None:
            if loader.spec.size != size_at(run.epoch, config):
                loader.set_size(size_at(run.epoch, config))

        def validate() -> dict[str, float]:
            assert config.val is not None
            with open_eval(config.val, selection, config) as val:
                return {f"val_{k}": v for k, v in loop.evaluate(model, val, normalise, objective.score).items()}

        grow(run)
        write_atomically(out / "config.yaml", yaml.safe_dump(settings, sort_keys=False))  # only now: all input is good
        with loop.graceful_stop() as stopped, Log(out, config, total, run) as log:

            def on_step(run: Run) -> bool:
                log.step(run)
                return stopped()

            def on_epoch(run: Run, metrics: dict[str, float]) -> None:
                last = run.epoch == config.epochs
                if config.val and (last or run.epoch % config.val_every == 0):
                    metrics.update(validate())
                log.epoch(metrics)
                if last or run.epoch % config.checkpoint_every == 0:
                    save()
                grow(run)

            done = loop.train(
                run, objective.watch(loader) if config.forgetting else loader, normalise,
                lambda step: learning_rate(
                    step, schedule=config.schedule, peak=config.lr, total_steps=total, warmup_steps=warmup
                ),
                epochs=config.epochs, precision=precision, on_step=on_step, on_epoch=on_epoch,
            )  # fmt: skip
        if not done:
            save()
            raise cli.Terminated(f"{out}: saved at step {run.step} of {total}; go on with --resume")
    if config.forgetting:
        write_atomically(out / "forgetting.npy", npy_bytes(objective.counts()))
    summary = summarise(out, config, source, selection, precision)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _settings(config: PretrainConfig, selection: Selection | None) -> dict[str, Any]:
    """All that decides what the run computes: config.yaml, and what a continuation must share."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_ON_RESUME}
    if selection is not None:
        settings["selection_classes_sha256"] = hashlib.sha256(json.dumps(selection.kept_classes).encode()).hexdigest()
        if selection.records is not None:
            settings["selection_records_sha256"] = hashlib.sha256(selection.records.tobytes()).hexdigest()
    return settings


def _check_folder(out: Path, settings: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Refuse a folder that holds another run. Returns the summary of a run that is already complete."""
    import yaml

    path = out / "config.yaml"
    if not path.exists():
        return None
    if not resume:
        raise UsageError(f"{out} already holds a run. Go on with --resume, or give another --out")
    try:
        old = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not readable as YAML ({error})") from None
    changed = sorted(k for k in settings.keys() | old.keys() if settings.get(k) != old.get(k))
    if changed:
        differences = "; ".join(f"{k} was {old.get(k)!r}, now {settings.get(k)!r}" for k in changed)
        raise UsageError(f"{out}: --resume with other settings: {differences}")
    summary = out / "summary.json"
    return json.loads(summary.read_text()) if summary.exists() else None


def size_at(epoch: int, config: PretrainConfig) -> int:
    """Side of the training images in an epoch."""
    return config.end_size if config.end_size and epoch >= config.end_size_from else config.size


def eval_size(config: PretrainConfig) -> int:
    return config.val_size or config.end_size or config.size


def open_train(config: PretrainConfig, source: Beton, selection: Selection | None, views: int) -> BaseLoader:
    """Shuffled, augmented uint8 batches of the surviving records."""
    from dp4tl_fast.loaders import LoaderSpec, open_loader

    spec = LoaderSpec(
        batch_size=config.batch_size, size=config.size, transform="random_resized_crop", scale=(config.min_scale, 1.0),
        flip=config.flip, shuffle=True, drop_last=True, seed=config.seed, workers=config.workers,
        views=views, with_index=config.forgetting,
    )  # fmt: skip
    return open_loader(source, selection, spec, config.backend)


def open_eval(path: str | Path, selection: Selection | None, config: PretrainConfig) -> BaseLoader:
    """Every record of the surviving classes once, in file order, centre-cropped."""
    from dp4tl_fast.loaders import LoaderSpec, open_loader

    beton = Beton(path)
    size = eval_size(config)
    spec = LoaderSpec(batch_size=config.batch_size, size=size, crop_ratio=crop_ratio(size), workers=config.workers)
    return open_loader(beton, selection.for_split(beton) if selection else None, spec, config.backend)


def crop_ratio(size: int) -> float:
    """The usual 224 of 256 pixels, but all of an image that is small already."""
    return 224 / 256 if size > 64 else 1.0


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


class Log:
    """Progress bar, metrics.jsonl and TensorBoard of one run."""

    def __init__(self, out: Path, config: PretrainConfig, total: int, run: Run) -> None:
        self._path, self._config = out / "metrics.jsonl", config
        keep = [row for row in read_metrics(self._path) if row["epoch"] < run.epoch]
        write_atomically(
            self._path, "".join(json.dumps(row) + "\n" for row in keep)
        )  # a resumed run may have lost some
        self._bar = cli.progress(None, desc=out.name, unit="step", total=total, initial=run.step)
        self._board: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out), purge_step=run.epoch)
        self._shown = 0.0

    def step(self, run: Run) -> None:
        self._bar.update()
        now = time.monotonic()
        if now - self._shown > 2.0:  # reading the loss waits for the device: rarely
            self._shown, tally = now, run.tally
            self._bar.set_postfix_str(
                f"epoch {run.epoch + 1}/{self._config.epochs}, loss {float(tally.sums['loss']) / tally.samples:.3f}, "
                f"lr {run.optimizer.param_groups[0]['lr']:.3g}, {tally.samples / max(tally.seconds, 1e-9):,.0f} images/s, "
                f"data wait {100 * tally.data_wait_s / max(tally.seconds, 1e-9):.0f} %"
            )

    def epoch(self, metrics: dict[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, int(metrics["epoch"]))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The finished epochs of a run; a half-written last line is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def summarise(
    out: Path, config: PretrainConfig, source: Beton, selection: Selection | None, precision: Any
) -> dict[str, Any]:
    """What a finished run cost and reached."""
    rows = read_metrics(out / "metrics.jsonl")
    seconds, samples = sum(r["seconds"] for r in rows), sum(r["samples"] for r in rows)
    last = rows[-1]
    return {
        "kind": "pretrain",
        "arch": config.arch,
        "backend": config.backend,
        "method": selection.method if selection else "full",
        "source": str(config.source),
        "selection": config.selection,
        "classes_kept": len(selection.kept_classes) if selection else source.num_classes,
        "classes": source.num_classes,
        "samples": selection.kept_samples if selection else source.num_samples,
        "epochs": config.epochs,
        "seed": config.seed,
        "pretrain_s": seconds,
        "pruning_s": sum(selection.seconds.values()) if selection else 0.0,
        "samples_per_s": samples / max(seconds, 1e-9),
        "data_wait_share": sum(r["data_wait_s"] for r in rows) / max(seconds, 1e-9),
        "bytes_read": int(sum(r["bytes_read"] for r in rows)),
        "precision": str(precision).removeprefix("torch.") if precision else "float32",
        **{k: last[k] for k in ("loss", "top_1", "top_5", "val_top_1", "val_top_5") if k in last},
    }


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(pretrain, argv)


if __name__ == "__main__":
    sys.exit(main())
