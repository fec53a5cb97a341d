"""Lightning: the data module returns the loader, and a checkpoint in the middle of an epoch saves the loader's position.

    python examples/with_lightning.py demo-out/source.beton demo-out/lm.json --out lightning-out
    python examples/with_lightning.py demo-out/source.beton demo-out/lm.json --out lightning-out --resume
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchvision.models import resnet18

from dp4tl_fast import Beton, LoaderSpec, Selection, open_loader

parser = argparse.ArgumentParser()
parser.add_argument("source", help=".beton to train on")
parser.add_argument("selection", help="which of its classes")
parser.add_argument("--out", default="lightning-out")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--max-steps", type=int, default=-1)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=64, help="per process")
parser.add_argument("--save-every", type=int, default=50, help="steps")
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()


class Data(L.LightningDataModule):
    def train_dataloader(self):  # opened here, where Lightning has set up torch.distributed: each process reads its share
        spec = LoaderSpec(batch_size=args.batch_size, size=args.size, transform="random_resized_crop", flip=True, shuffle=True,
                          drop_last=True, dtype="float32")  # fmt: skip
        return open_loader(args.source, Selection.load(args.selection), spec)


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = resnet18(num_classes=Beton(args.source).num_classes)

    def training_step(self, batch, step):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


L.seed_everything(0)
saving = ModelCheckpoint(args.out, every_n_train_steps=args.save_every, save_last=True)
trainer = L.Trainer(max_epochs=args.epochs, max_steps=args.max_steps, callbacks=[saving], logger=False)
trainer.fit(Classifier(), Data(), ckpt_path=f"{args.out}/last.ckpt" if args.resume else None)
trainer.save_checkpoint(f"{args.out}/final.ckpt")
