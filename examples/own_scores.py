"""Make a selection from your own class scores (here: how close the mean colour of each class is to the target's).

    python examples/own_scores.py demo-out/source.beton demo-out/train.beton colour.json --keep 100
    dp4tl-fast pretrain --source demo-out/source.beton --selection colour.json --arch small-16 --size 32 --out runs/colour
"""

import argparse

import numpy as np
import torch

from dp4tl_fast import Beton, LoaderSpec, Selection, open_loader

parser = argparse.ArgumentParser()
parser.add_argument("source", help=".beton to select from")
parser.add_argument("target", help=".beton of the task")
parser.add_argument("out", help="selection to write")
parser.add_argument("--keep", type=int, default=100, help="classes")
args = parser.parse_args()


def mean_colours(beton: Beton) -> np.ndarray:
    """Mean red, green and blue of every class, float64 ``[classes, 3]``."""
    sums = torch.zeros(beton.num_classes, 3, dtype=torch.float64)
    with open_loader(beton, spec=LoaderSpec(size=8, transform="resize", dtype="float32")) as loader:
        for images, labels in loader:  # each image once, in file order
            sums.index_add_(0, labels, images.double().mean((2, 3)))
    return sums.numpy() / np.maximum(beton.class_counts, 1)[:, None]


source, target = Beton(args.source), Beton(args.target)
wanted = np.average(mean_colours(target), axis=0, weights=target.class_counts)
scores = -np.linalg.norm(mean_colours(source) - wanted, axis=1)  # the highest are kept
kept = np.argsort(-scores, kind="stable")[: args.keep]
selection = Selection.of_classes(source, kept, method="mean colour", scores=scores, parameters={"target": args.target})
selection.save(args.out)  # Selection.of_records takes single records instead
print(f"{len(selection.kept_classes)} of {source.num_classes} classes, {selection.kept_samples} of {source.num_samples} images")
print("first:", ", ".join(source.class_names[c] for c in kept[:8]))
