"""Accelerate: ``prepare`` takes the loader as a DataLoader, and ``save_state`` saves its position in the epoch.

    accelerate launch examples/with_accelerate.py demo-out/source.beton demo-out/lm.json --out accelerate-out

Each process reads its own share: rank and world size come from torch.distributed, which Accelerate sets up.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torchvision.models import resnet18

from dp4tl_fast import LoaderSpec, Selection, open_loader

parser = argparse.ArgumentParser()
parser.add_argument("source", help=".beton to train on")
parser.add_argument("selection", help="which of its classes")
parser.add_argument("--out", default="accelerate-out")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=64, help="per process")
parser.add_argument("--save-every", type=int, default=50, help="steps")
args = parser.parse_args()

accelerator = Accelerator()
torch.manual_seed(0)
spec = LoaderSpec(batch_size=args.batch_size, size=args.size, transform="random_resized_crop", flip=True, shuffle=True,
                  drop_last=True, dtype="float32", device=str(accelerator.device))  # fmt: skip

with open_loader(args.source, Selection.load(args.selection), spec) as loader:
    model = resnet18(num_classes=len(loader.dataset.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader.as_dataloader())
    if Path(args.out).exists():
        accelerator.load_state(args.out)
        accelerator.print(f"going on in epoch {loader.epoch}: {loader.state_dict()['batch']} batches are done")
    for epoch in range(loader.epoch, args.epochs):
        for step, (images, labels) in enumerate(batches, 1):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            if step % args.save_every == 0:
                accelerator.save_state(args.out)
                accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
        accelerator.save_state(args.out)
