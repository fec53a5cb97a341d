"""Use your own PyTorch network as the surrogate: it votes for the source classes that the target's images look like.

    python examples/own_surrogate.py demo-out/source.beton demo-out/train.beton own.json --keep 0.35
"""

import argparse

import torch
from torch import nn

from dp4tl_fast import Beton, LoaderSpec, Selection, open_loader
from dp4tl_fast.mapping.keep import Keep
from dp4tl_fast.mapping.label_mapping import label_mapping

parser = argparse.ArgumentParser()
parser.add_argument("source", help=".beton to select from")
parser.add_argument("target", help=".beton of the task")
parser.add_argument("out", help="selection to write")
parser.add_argument("--keep", default="auto", help="a share, a number of classes, or auto")
parser.add_argument("--epochs", type=int, default=3)
args = parser.parse_args()

torch.manual_seed(0)
source = Beton(args.source)
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, source.num_classes),
)  # fmt: skip

# Yours may be trained already: then only the classes must be the source's, in its order.
spec = LoaderSpec(batch_size=64, size=16, transform="random_resized_crop", scale=(0.6, 1), shuffle=True, dtype="float32")
with open_loader(source, spec=spec) as loader:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(args.epochs):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

model.eval()
with open_loader(args.target, spec=LoaderSpec.evaluation(size=16, batch_size=256, dtype="float32")) as loader:
    votes = label_mapping(model, (images for images, _ in loader), source.num_classes)
ranked = Selection.of_classes(source, range(source.num_classes), method="lm, own network", scores=votes.votes,
                              tie_breaks=votes.probability)  # fmt: skip
order = ranked.ranking()
selection = ranked.top(Keep.parse(args.keep).cut(order, source.class_counts, votes.votes), source)
selection.save(args.out)
print(f"{len(selection.kept_classes)} of {source.num_classes} classes have "
      f"{100 * votes.votes[selection.kept_classes].sum() / votes.votes.sum():.0f} % of the votes; first: "
      f"{', '.join(source.class_names[c] for c in order[:8])}")  # fmt: skip
