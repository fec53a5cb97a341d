"""The ways of training that suite ``training`` compares, each in a process of its own (``benchmarks.child``).

Options: ``folder`` (class folders of images), ``file`` (the same as a .beton), ``batch``, ``size``, ``arch``, ``threads`` and, for
ours, ``precision`` (fp32).
An epoch answers ``{"seconds", "samples", "wait_s", "loss"}``; ``wait_s`` is the time in which the loop had no batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from dp4tl_fast.training import models
from dp4tl_fast.training.supervised import hits

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_SCALE, RATE = 0.25, 0.1
Epoch = Callable[[int], dict[str, float]]


def reference(options: dict[str, Any]) -> Epoch:
    """As the ImageNet example in pytorch/examples has it: ImageFolder, PIL, torchvision's transforms, a DataLoader; meters that
    read the loss and the accuracies of every batch."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([
        transforms.RandomResizedCrop(options["size"], scale=(MIN_SCALE, 1.0)), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    images = datasets.ImageFolder(options["folder"], transform)
    loader = torch.utils.data.DataLoader(
        images, batch_size=options["batch"], shuffle=True, drop_last=True,
        num_workers=options["threads"], persistent_workers=True,
    )  # fmt: skip
    model = models.build(options["arch"], len(images.classes)).to(memory_format=torch.contiguous_format)
    return plain_loop(model, loader)


def ffcv(options: dict[str, Any]) -> Epoch:
    """FFCV's loader, normalising while it loads, with the same plain loop on channels-last batches."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    from dp4tl_fast.beton import Beton

    torch.set_num_threads(options["threads"])  # importing FFCV sets it to one
    mean, std = (np.array(v, np.float32) * 255 for v in (MEAN, STD))
    image = [
        RandomResizedCropRGBImageDecoder((options["size"],) * 2, scale=(MIN_SCALE, 1.0)), RandomHorizontalFlip(),
        NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(),
    ]  # fmt: skip
    loader = Loader(
        options["file"], batch_size=options["batch"], num_workers=options["threads"], order=OrderOption.RANDOM, os_cache=True,
        drop_last=True, pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()], "index": None},
    )  # fmt: skip
    return plain_loop(models.build(options["arch"], Beton(options["file"]).num_classes), loader)


def plain_loop(model: nn.Module, loader: Iterable[Any]) -> Epoch:
    """SGD and cross entropy, step by step, as scripts write it."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()

    def epoch(number: int) -> dict[str, float]:
        model.train()
        samples, waited, losses, right = 0, 0.0, 0.0, {"top_1": 0, "top_5": 0}
        start = before = time.perf_counter()
        for images, labels in loader:
            waited += time.perf_counter() - before
            output = model(images)
            loss = criterion(output, labels)
            losses += loss.item() * len(labels)
            right = {name: right[name] + int(count) for name, count in hits(output.detach(), labels).items()}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            samples += len(labels)
            before = time.perf_counter()
        waited += time.perf_counter() - before  # for the end of the epoch
        return {"seconds": time.perf_counter() - start, "samples": samples, "wait_s": waited, "loss": losses / samples}

    return epoch


def ours(options: dict[str, Any]) -> Epoch:
    """``dp4tl-fast pretrain``'s own loader, learner and loop; without its files."""
    from dp4tl_fast.beton import Beton
    from dp4tl_fast.pretraining.batches import open_train
    from dp4tl_fast.pretraining.config import PretrainConfig
    from dp4tl_fast.pretraining.learner import build
    from dp4tl_fast.training.loop import train

    source = Beton(options["file"])
    config = PretrainConfig(
        source=options["file"], out=tempfile.gettempdir(), arch=options["arch"], size=options["size"], batch_size=options["batch"],
        min_scale=MIN_SCALE, weight_decay=1e-4, precision=options.get("precision", "fp32"),
    )  # fmt: skip
    loader = open_train(config, source, None)
    learner = build(config, source, None, total_steps=1)

    def epoch(number: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        train(
            learner.run, loader, learner.prepare, lambda step: RATE, epochs=learner.run.epoch + 1, how=learner.how,
            on_epoch=lambda run, epoch_metrics: metrics.update(epoch_metrics),
        )  # fmt: skip
        return {name: metrics[name] for name in ("seconds", "samples", "loss")} | {"wait_s": metrics["data_wait_s"]}

    return epoch


SUBJECTS: dict[str, Callable[[dict[str, Any]], Epoch]] = {"reference": reference, "ffcv": ffcv, "ours": ours}


def subject(name: str, options: dict[str, Any]) -> Epoch:
    """What runs an epoch of the way of training of that name."""
    return SUBJECTS[name](options)
