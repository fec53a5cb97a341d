"""A plain PyTorch loop that resumes in the middle of an epoch, at the next batch: same images, same crops, same weights.

    python examples/plain_loop.py demo-out/source.beton demo-out/lm.json plain.pt      # press Ctrl-C, then run it again
"""

import argparse
from pathlib import Path

import torch
from torchvision.models import resnet18

from dp4tl_fast import LoaderSpec, Selection, open_loader

parser = argparse.ArgumentParser()
parser.add_argument("source", help=".beton to train on")
parser.add_argument("selection", help="which of its classes")
parser.add_argument("checkpoint", help="file to write, and to go on from")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--save-every", type=int, default=50, help="steps")
args = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
spec = LoaderSpec(batch_size=args.batch_size, size=args.size, transform="random_resized_crop", flip=True, shuffle=True,
                  drop_last=True, dtype="float32", device=device)  # fmt: skip
torch.manual_seed(0)

with open_loader(args.source, Selection.load(args.selection), spec) as loader:
    model = resnet18(num_classes=len(loader.dataset.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if Path(args.checkpoint).exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        print(f"going on in epoch {loader.epoch}, after {saved['loader']['batch']} of {len(loader)} batches")

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
        torch.save(state, f"{args.checkpoint}.new")
        Path(f"{args.checkpoint}.new").replace(args.checkpoint)

    for epoch in range(loader.epoch, args.epochs):  # each pass over the loader is the next epoch, or the rest of one
        for step, (images, labels) in enumerate(loader, 1):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % args.save_every == 0:
                save()
                print(f"epoch {epoch}: loss {loss.item():.3f}")
        save()
