"""What code written for torch's DataLoader finds: attributes, transforms of batches, shares of ranks, and the DataLoader itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_cases import AUGMENTED, BATCH, CLASSES, N, class_labels, flat, keep, same, spec
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.loaders.decode import decode_record


def test_attributes_of_a_dataloader(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, keep(jpegs, 1, 3), spec(shuffle=True), backend) as loader:
        n = 2 * N // CLASSES
        assert (loader.batch_size, len(loader), len(loader.dataset), len(loader.sampler)) == (BATCH, -(-n // BATCH), n, n)
        assert loader.dataset.classes == list(jpegs.class_names) and loader.dataset.class_to_idx[jpegs.class_names[3]] == 3
        assert loader.dataset.targets == [1] * (n // 2) + [3] * (n // 2)
        image, label = loader.dataset[-1]
        record = int(loader.records[-1])
        truth = decode_record(jpegs, record, jpegs.images[record], jpegs.payload(record))
        assert label == 3 and np.array_equal(np.asarray(image), truth)
        assert [label for _, label in loader.dataset[8:12]] == [1, 1, 3, 3]
        with pytest.raises(IndexError):
            loader.dataset[n]


def test_a_samplers_epoch_leaves_a_loaded_position(jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(**AUGMENTED)) as loader:
        loader.set_epoch(4)
        batches = list(loader)
        loader.sampler.set_epoch(4)
        assert same(list(loader), batches)
        loader.set_epoch(4)
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
    with open_loader(jpegs, None, spec(**AUGMENTED)) as loader:
        loader.load_state_dict(state)
        loader.sampler.set_epoch(4)
        assert same(list(loader), batches[2:])
        loader.load_state_dict(state)
        loader.sampler.set_epoch(5)
        assert len(list(loader)) == len(loader) and loader.epoch == 5


# -- shares --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [{"rank": 1}, {"world_size": 2}, {"rank": 0}, {"world_size": 1}])
def test_half_a_share_is_refused(half: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is only half of this process's share"):
        LoaderSpec(**half)  # type: ignore[arg-type]


def test_alone_the_share_is_all(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        assert (loader.spec.rank, loader.spec.world_size) == (0, 1)


PROGRAM = """
import json, sys
import torch
from accelerate import Accelerator
from dp4tl_fast import LoaderSpec, open_loader

accelerator = Accelerator(cpu=True)
spec = LoaderSpec(batch_size=4, size=16, workers=1, shuffle=True, with_index=True)
with open_loader(sys.argv[1], None, spec) as loader:
    found = {"default": [loader.spec.rank, loader.spec.world_size], "batches": len(loader)}
    model, batches = accelerator.prepare(torch.nn.Linear(1, 1), loader.as_dataloader())
    found["index"] = [index.tolist() for *_, index in batches]
given = LoaderSpec(batch_size=4, size=16, workers=1, rank=0, world_size=1)
with open_loader(sys.argv[1], None, given) as loader:
    found["given"] = [loader.spec.rank, loader.spec.world_size]
everyone = [None, None]
torch.distributed.all_gather_object(everyone, found)
if accelerator.is_main_process:
    print(json.dumps(everyone))
accelerator.wait_for_everyone()  # none leaves while the other still needs it
accelerator.end_training()
"""


def test_ranks_are_those_of_torch_distributed(jpegs: Beton, tmp_path: Path) -> None:
    """In two processes of Accelerate's: each reads its share, and ``prepare`` neither takes from it nor adds to it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "program.py")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*command, str(jpegs.path)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert (first["default"], second["default"]) == ([0, 2], [1, 2])
    assert first["given"] == second["given"] == [0, 1]
    assert len(first["index"]) == first["batches"] == second["batches"] == 7
    with open_loader(jpegs, None, spec(batch_size=8, shuffle=True)) as loader:
        together = [a + b for a, b in zip(first["index"], second["index"], strict=True)]
        assert together == [index.tolist() for *_, index in loader]


# -- transforms ----------------------------------------------------------------------------------------------------------

NORMALISE = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])


@pytest.mark.parametrize("views", [1, 2])
def test_a_transform_sees_every_batch(backend: str, jpegs: Beton, views: int) -> None:
    with open_loader(jpegs, None, spec(views=views, **AUGMENTED), backend) as loader:
        plain = list(loader)
    def doubled(labels: torch.Tensor) -> torch.Tensor:
        return 2 * labels
    with open_loader(jpegs, None, spec(views=views, **AUGMENTED), backend, transform=NORMALISE, target_transform=doubled) as loader:
        changed = list(loader)
    assert type(changed[0]) is type(plain[0])
    for (images, labels, index), (before, classes, numbers) in zip(changed, plain, strict=True):
        pairs = [(images, before)] if views == 1 else list(zip(images, before, strict=True))
        assert len(pairs) == views and all(torch.equal(x, NORMALISE(y)) for x, y in pairs)
        assert torch.equal(labels, 2 * classes) and torch.equal(index, numbers)


def test_a_random_transform_is_the_same_after_a_resume(jpegs: Beton) -> None:
    """And it leaves the random numbers of the training loop alone."""
    noise = v2.Compose([NORMALISE, lambda images: images + torch.randn_like(images)])
    with open_loader(jpegs, None, spec(**AUGMENTED), transform=noise) as loader:
        torch.manual_seed(1)
        whole = [list(loader) for _ in range(2)]
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(whole[0][0][0] - whole[0][1][0], whole[1][0][0] - whole[1][1][0])
    with open_loader(jpegs, None, spec(**AUGMENTED), transform=noise) as loader:
        list(loader)
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
    with open_loader(jpegs, None, spec(**AUGMENTED), transform=noise) as loader:
        loader.load_state_dict(state)
        assert same(list(loader), whole[1][2:])


def test_an_error_in_a_transform_is_the_callers_and_ends_the_epoch(jpegs: Beton) -> None:
    def fails(images: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with open_loader(jpegs, None, spec(), transform=fails) as loader:
        iterator = iter(loader)
        with pytest.raises(ZeroDivisionError):
            next(iterator)
        with pytest.raises(Exception, match="was ended by its error"):
            next(iterator)


# -- as a DataLoader -----------------------------------------------------------------------------------------------------


class Opened:
    """A loader behind one of the two faces. ``position`` is what is saved."""

    def __init__(self, beton: Beton, backend: str, theirs: bool) -> None:
        self.loader = open_loader(beton, None, spec(**AUGMENTED), backend)
        own = self.loader.as_dataloader()
        self.face: Any = StatefulDataLoader(own.dataset, batch_size=None, num_workers=0) if theirs else own

    def __enter__(self) -> Any:
        return self.face

    def __exit__(self, *exc: object) -> None:
        self.loader.close()


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "in a StatefulDataLoader"])
def test_the_contract_of_a_stateful_dataloader(backend: str, jpegs: Beton, theirs: bool) -> None:
    """Our DataLoader, and torchdata's own over our batches: the same at every place where a state can be taken."""
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        epochs = [list(loader) for _ in range(3)]
    steps = len(epochs[0])
    with Opened(jpegs, backend, theirs) as face:
        assert isinstance(face, DataLoader) and len(face) == steps
        assert all(same(list(face), batches) for batches in epochs)
    for taken_after in (0, 1, 4, steps, steps + 2):
        with Opened(jpegs, backend, theirs) as face:
            stream = forever(face)
            for _ in range(taken_after):
                next(stream)
            state = json.loads(json.dumps(face.state_dict()))
        with Opened(jpegs, backend, theirs) as face:
            face.load_state_dict(state)
            epoch, step = divmod(taken_after, steps)
            assert same(list(face), epochs[epoch][step:]), taken_after
            assert same(list(face), epochs[epoch + 1]), taken_after


def forever(face: Any) -> Iterator[Any]:
    while True:
        yield from face


def test_what_rebuilds_a_dataloader_gets_the_same_batches(jpegs: Beton) -> None:
    """Lightning, say, makes another from the data set."""
    with open_loader(jpegs, None, spec(shuffle=True)) as loader:
        own = loader.as_dataloader()
        again = DataLoader(own.dataset, batch_size=own.batch_size, num_workers=own.num_workers)
        want = list(own)
        own.set_epoch(0)
        assert len(again) == len(own) and same(list(again), want)
        assert sorted(flat(want, 1)) == sorted(class_labels())
