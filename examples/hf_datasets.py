"""Prune a Hugging Face ``datasets`` data set for a target, and write the rows that are kept as Parquet.

    python examples/hf_datasets.py demo-out/images/source demo-out/images/digits/train kept.parquet --keep 0.35

Works with any data set that has an image column and a class-label column: ``load_dataset("ORG/NAME", split="train")``.
"""

import argparse
import tempfile
from pathlib import Path

from datasets import load_dataset
from datasets.table import embed_table_storage

import dp4tl_fast
from dp4tl_fast import Beton, PruneConfig, Selection

parser = argparse.ArgumentParser()
parser.add_argument("source", help="folder of class folders, as load_dataset('imagefolder') reads it")
parser.add_argument("target", help="likewise")
parser.add_argument("out", help="Parquet file to write")
parser.add_argument("--keep", default="0.35")
parser.add_argument("--surrogate-epochs", type=int, default=0, help="0: until it is enough")
args = parser.parse_args()

with tempfile.TemporaryDirectory() as work:
    files = {}
    for name in ("source", "target"):
        table = load_dataset("imagefolder", data_dir=getattr(args, name), split="train", cache_dir=f"{work}/cache")
        table = table.with_format("arrow").map(embed_table_storage, batched=True)  # the images' bytes instead of their paths
        table.to_parquet(f"{work}/{name}.parquet")
        files[name] = f"{work}/{name}.beton"
        dp4tl_fast.convert(f"{work}/{name}.parquet", files[name])
        if name == "source":
            source = table
    dp4tl_fast.prune(
        PruneConfig(
            source=files["source"], target=[files["target"]], train_surrogate=f"{work}/surrogate", arch="small-8",
            surrogate_epochs=args.surrogate_epochs, keep=args.keep, out=f"{work}/kept.json",
        )
    )  # fmt: skip
    beton, selection = Beton(files["source"]), Selection.load(f"{work}/kept.json")
    rows = sorted(beton.index[selection.indices(beton)].tolist())  # a record's index is its row in the data set
    source.select(rows).to_parquet(args.out)

print(f"{Path(args.out)}: {len(rows)} of {len(source)} rows, {len(selection.kept_classes)} of {beton.num_classes} classes")
