"""The feature pass of a linear probe: stopped and killed at any batch, alone or in two processes, it goes on where it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from small_runs import to_tune
from test_distributed import ONE_THREAD, TORCHRUN
from test_finetune_run import config, same, tensors

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import CheckpointError, UsageError
from dp4tl_fast.finetuning import kept, work
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.loaders import LoaderSpec, open_loader


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return to_tune(tmp_path_factory.mktemp("features"))


@pytest.fixture
def seen(monkeypatch):
    """Images of every batch of the feature passes; ``stop_at``: number of batches after which a SIGTERM comes."""
    plain = work.agreed

    class Seen(list):
        stop_at = 0

    found = Seen()

    def agreed(batches, stopped, out):
        for batch in plain(batches, stopped, out):
            found.append(len(batch.labels))
            if len(found) == found.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(work, "agreed", agreed)
    return found


@pytest.mark.parametrize("mode", ["lp", "knn"])
def test_a_stopped_pass_goes_on_and_ends_with_the_same_bits(data, tmp_path, seen, mode):
    """38 and 22 images in batches of 8, kept after 1, 3 and 5: stopped in the first file, then in the second."""
    whole = finetune(config(data, tmp_path / "whole", mode=mode, seeds=1))
    assert seen == [8, 8, 8, 8, 6, 8, 8, 6] and not (tmp_path / "whole/features").exists()
    out = tmp_path / "cut"
    for stop_at, left in ((4, ["train-000000000000.npy", "train-000000000008.npy"]),
                          (3, ["test-000000000000.npy", "train-000000000024.npy"])):  # fmt: skip
        del seen[:]
        seen.stop_at = stop_at
        with pytest.raises(Terminated, match=r"the features so far are saved; continue with `resume`"):
            finetune(config(data, out, mode=mode, seeds=1, resume=stop_at == 3))
        assert {p.name for p in (out / "features").iterdir()} >= set(left)
    with pytest.raises(UsageError, match="already holds a run"):
        finetune(config(data, out, mode=mode, seeds=1))
    del seen[:]
    seen.stop_at = 0
    done = finetune(config(data, out, mode=mode, seeds=1, resume=True))
    assert seen == [8, 6]  # the rest of the second file
    assert {k: v for k, v in done.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert not (out / "features").exists()
    if mode == "lp":
        assert same(tensors(tmp_path / "whole/seed-0"), tensors(out / "seed-0"))


@pytest.mark.parametrize(("start", "how"), [([sys.executable], "KILL"), pytest.param(TORCHRUN, "TERM", marks=pytest.mark.slow)])
def test_a_killed_pass_and_one_of_two_processes_go_on(data, tmp_path, start, how):
    """Killed without a warning; and a signal to the process that does not write."""
    script = tmp_path / "stop.py"
    script.write_text(
        "import os, signal, sys\nfrom dp4tl_fast.finetuning import work\nfrom dp4tl_fast.finetune import main\n"
        "plain, seen = work.agreed, []\n"
        "def agreed(batches, stopped, out):\n"
        "    for batch in plain(batches, stopped, out):\n"
        "        seen.append(batch)\n"
        f"        if len(seen) == 4 and os.environ.get('RANK', '1') == '1': os.kill(os.getpid(), signal.SIG{how})\n"
        "        yield batch\n"
        "work.agreed = agreed\nsys.exit(main(sys.argv[1:]))"
    )
    flags = [f"--{k}={data / v}" for k, v in (("checkpoint", "run"), ("train", "train.beton"), ("test", "test.beton"))]
    flags += ["--epochs=2", "--batch-size=8", "--seeds=1", "--no-tensorboard", "--workers=1"]

    def finetuned(program, out, *more):
        command = [*start, *program, *flags, f"--out={tmp_path / out}", *more]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)

    cut = finetuned([str(script)], "cut")
    assert cut.returncode != 0 and (how == "KILL" or "the features so far are saved" in cut.stderr), cut.stderr
    kept_rows = sum(len(np.load(part)) for part in (tmp_path / "cut/features").glob("train-*.npy"))
    assert kept_rows == 24
    for out, more in (("cut", ["--resume"]), ("whole", [])):
        done = finetuned(["-m", "dp4tl_fast.finetune"], out, *more)
        assert done.returncode == 0, done.stderr
    assert same(tensors(tmp_path / "cut/seed-0"), tensors(tmp_path / "whole/seed-0"))


def test_features_that_cannot_be_read_are_named(data, tmp_path, seen):
    seen.stop_at = 4
    with pytest.raises(Terminated):
        finetune(config(data, tmp_path / "o"))
    part = tmp_path / "o/features/train-000000000008.npy"
    whole = part.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"rubbish"):
        part.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"train-000000000008\.npy: features that cannot be read .* Remove it"):
            finetune(config(data, tmp_path / "o", resume=True))
    part.unlink()
    assert finetune(config(data, tmp_path / "o", resume=True))["top_1"]


def test_stretches_grow_until_they_are_worth_a_file(data, tmp_path, monkeypatch):
    """By an own clock, on which a batch of two takes 1.5 s: 1, 2 and then 4 batches, which take 6 s."""
    clock = [0.0]
    monkeypatch.setattr(kept.time, "perf_counter", lambda: clock[0])
    with open_loader(data / "train.beton", None, LoaderSpec(batch_size=2, size=16)) as loader:

        def compute():
            rows = [images.float().mean((2, 3)) for images, _ in loader]
            clock[0] += 1.5 * len(rows)
            return torch.cat(rows)

        found = kept.features(tmp_path, "x", loader, compute, lambda: None)
        assert sorted(int(p.stem[2:]) for p in tmp_path.iterdir()) == [0, 2, 6, 14, 22, 30]
        loader.set_records(None)
        assert torch.equal(found, compute())


def test_a_continued_pass_knows_what_was_skipped_before(data, tmp_path):
    """Records 3 and 20 are no images; a pass that ends in its second file knows both, and where they are."""
    shutil.copy(data / "train.beton", tmp_path / "bad.beton")
    beton = Beton(tmp_path / "bad.beton")
    with open(beton.path, "r+b") as file:
        for record in (3, 20):
            file.seek(int(beton.images["data_ptr"][record]))
            file.write(bytes(int(beton.sizes[record])))

    def passed(stop_after):
        with open_loader(beton, None, LoaderSpec(batch_size=8, size=16, with_index=True, on_error="skip")) as loader:
            place = {index: i for i, index in enumerate(beton.index.tolist())}
            stretches = 0

            def compute():
                nonlocal stretches
                stretches += 1
                if stretches > stop_after:
                    raise KeyboardInterrupt
                first, rows = loader.records[0], torch.full((len(loader.records), 3), torch.nan)
                for images, _, index in loader:
                    rows[[place[i] - first for i in index.tolist()]] = images.float().mean((2, 3))
                return rows

            try:
                return kept.features(tmp_path / "f", "x", loader, compute, lambda: None), [r for r, _ in loader.skipped]
            except KeyboardInterrupt:
                return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert passed(stop_after=2) is None
        assert len(list((tmp_path / "f").glob("*.skipped.json"))) == 2
        rows, skipped = passed(stop_after=9)
    assert skipped == [3, 20] and rows.isnan().any(1).nonzero()[:, 0].tolist() == [3, 20]
