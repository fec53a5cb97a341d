"""A loop in the style of timm's ``train.py``, with timm's model, optimiser, schedule, Mixup and weight averaging (EMA).

    python examples/timm_style.py demo-out/source.beton demo-out/lm.json --val demo-out/source.beton --model resnet10t
"""

import argparse

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

from dp4tl_fast import Beton, LoaderSpec, Selection, open_loader

parser = argparse.ArgumentParser()
parser.add_argument("source", help=".beton to train on")
parser.add_argument("selection", help="which of its classes")
parser.add_argument("--val", required=True, help=".beton to validate on, of the same classes")
parser.add_argument("--model", default="resnet10t")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=64)
args = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
kept, common = Selection.load(args.selection), {"batch_size": args.batch_size, "dtype": "float32", "device": device}
train = LoaderSpec(size=args.size, transform="random_resized_crop", flip=True, shuffle=True, drop_last=True, **common)
with (
    open_loader(args.source, kept, train) as loader_train,
    open_loader(args.val, kept.for_split(Beton(args.val)), LoaderSpec.evaluation(size=args.size, **common)) as loader_val,
):
    classes = len(loader_train.dataset.classes)
    model = timm.create_model(args.model, num_classes=classes).to(device)
    ema = ModelEmaV3(model, decay=0.99)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=5e-3, weight_decay=0.02)
    steps = len(loader_train)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=args.epochs, updates_per_epoch=steps, step_on_epochs=False)
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=classes)
    for epoch in range(args.epochs):
        loader_train.sampler.set_epoch(epoch)
        model.train()
        for step, (images, labels) in enumerate(loader_train, epoch * steps + 1):
            images, targets = mixup(images, labels)
            loss = SoftTargetCrossEntropy()(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model, step=step)
            scheduler.step_update(num_updates=step)
        top_1 = AverageMeter()
        with torch.inference_mode():
            for images, labels in loader_val:
                top_1.update(accuracy(ema.module.eval()(images), labels)[0].item(), len(labels))
        print(f"epoch {epoch}: loss {loss.item():.3f}, top-1 {top_1.avg:.1f} % of {top_1.count} images")
