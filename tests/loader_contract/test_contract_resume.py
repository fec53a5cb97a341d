"""The same pixels for any threads and batches, and after a resume."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from contract_cases import AUGMENTED, BATCH, N, by_index, class_labels, one_pass, payloads, same, spec
from native_files import picture, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset
from dp4tl_fast.common.errors import BetonError, UsageError
from dp4tl_fast.loaders import capabilities, open_loader


def test_pixels_do_not_depend_on_threads_or_batches(backend: str, beton: Beton) -> None:
    assert capabilities()[backend].deterministic
    runs = [one_pass(beton, backend, epoch=3, workers=workers, **AUGMENTED) for workers in (1, 2)]
    assert same(*runs)
    one, two = (by_index(one_pass(beton, backend, epoch=3, batch_size=size, **AUGMENTED)) for size in (5, 13))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[i], two[i]) for i in one)
    assert not same(runs[0], one_pass(beton, backend, epoch=4, **AUGMENTED))


@pytest.mark.parametrize("delivered", [0, 1, 3, 7])
def test_resume_continues_after_the_last_delivered_batch(backend: str, jpegs: Beton, delivered: int) -> None:
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.set_epoch(5)
        batches = list(loader)
        loader.set_epoch(5)
        iterator = iter(loader)
        for _ in range(delivered):
            next(iterator)
        state = loader.state_dict()
    assert {"epoch": 5, "batch": delivered, "global_batch_size": BATCH, "records": N}.items() <= state.items()
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert same(list(loader), batches[delivered:])
        loader.set_epoch(5)
        assert same(list(loader), batches)
        with pytest.raises(UsageError, match="8 batches were delivered, but this epoch has 7"):
            loader.load_state_dict({**state, "batch": 8})


OTHER = {
    "another global batch size": ({"batch_size": 2 * BATCH}, None, "'global_batch_size': 8.*'global_batch_size': 16"),
    "more ranks": ({"rank": 0, "world_size": 2}, None, "'global_batch_size': 8.*'global_batch_size': 16"),
    "another seed": ({"seed": 1}, None, "'seed': 0.*'seed': 1"),
    "mixed within less": ({"shuffle_buffer": 10**6}, None, "'shuffle_buffer': 0.*'shuffle_buffer': 1000000"),
    "file order": ({"shuffle": False}, None, "'shuffle': 1.*'shuffle': 0"),
    "fewer records": ({}, range(10), "'records': 50.*'records': 10"),
    "as many other records": ({}, range(1, N), "records_sha256"),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_state_of_another_order_is_refused(backend: str, jpegs: Beton, what: str) -> None:
    options, kept, says = OTHER[what]
    first = np.arange(N - 1) if what == "as many other records" else None
    with open_loader(jpegs, first, spec(shuffle=True), backend) as loader:
        next(iter(loader))
        state = loader.state_dict()
    records = None if kept is None else np.array(kept)
    with open_loader(jpegs, records, spec(**{"shuffle": True, **options}), backend) as loader:
        before = loader.state_dict()
        with pytest.raises(UsageError, match=f"loader state is for .*{says}"):
            loader.load_state_dict(state)
        assert loader.state_dict() == before


def test_a_state_is_of_a_file_and_not_of_its_path(backend: str, jpegs: Beton, folder: Path) -> None:
    with open_loader(jpegs, None, spec(shuffle=True), backend) as loader:
        whole = list(loader)
        loader.set_epoch(0)
        next(iter(loader))
        state = loader.state_dict()
    copied = folder / f"copied_{backend}.beton"
    copied.write_bytes(jpegs.path.read_bytes())
    with open_loader(copied, None, spec(shuffle=True), backend) as loader:
        loader.load_state_dict(state)
        assert same(list(loader), whole[1:])
    other = write(folder / f"other_{backend}.beton", payloads("jpeg")[::-1], class_labels())
    with open_loader(other, None, spec(shuffle=True), backend) as loader, pytest.raises(UsageError, match="file_sha256"):
        loader.load_state_dict(state)


@pytest.fixture(scope="module")
def raw_files(folder: Path) -> list[Beton]:
    """Two files of raw images that differ in their pixels alone; copies have checksums beside them."""
    found = []
    for name in ("one", "other"):
        plain = write(folder / f"{name}.beton", [picture(24, 24, len(name) + i) for i in range(N)], class_labels())
        subset(plain, np.arange(N), folder / f"{name}_copy.beton")
        found.append(Beton(folder / f"{name}_copy.beton"))
    assert found[0].records_sha256 == found[1].records_sha256
    return found


def test_a_state_tells_raw_images_of_one_size_apart(backend: str, raw_files: list[Beton], tmp_path: Path) -> None:
    one, other = raw_files
    with open_loader(one, None, spec(shuffle=True), backend) as loader:
        whole = list(loader)
        loader.set_epoch(0)
        next(iter(loader))
        state = loader.state_dict()
    with open_loader(other, None, spec(shuffle=True), backend) as loader, pytest.raises(UsageError, match="file_checksums_sha256"):
        loader.load_state_dict(state)
    bare = tmp_path / "bare.beton"  # without what lies beside it
    bare.write_bytes(one.path.read_bytes())
    with open_loader(bare, None, spec(shuffle=True), backend) as loader:
        loader.load_state_dict(state)
        assert same(list(loader), whole[1:])


def test_a_pickled_file_of_other_raw_images_is_refused(raw_files: list[Beton], tmp_path: Path) -> None:
    def put(beton: Beton) -> None:
        for path in beton.path.parent.glob(f"{beton.path.stem}.*"):
            (tmp_path / f"x{path.name.removeprefix(beton.path.stem)}").write_bytes(path.read_bytes())

    put(raw_files[0])
    pickled = pickle.dumps(Beton(tmp_path / "x.beton"))
    assert pickle.loads(pickled).checksums_sha256 == raw_files[0].checksums_sha256
    put(raw_files[1])
    with pytest.raises(BetonError, match=r"x\.beton: is not the file that was pickled"):
        pickle.loads(pickled)


@pytest.mark.parametrize(("what", "value"), [("batch", None), ("batch", 1.5), ("batch", -1), ("epoch", None), ("epoch", 0.5)])
def test_what_is_no_position_is_refused(jpegs: Beton, what: str, value: object) -> None:
    with open_loader(jpegs, None, spec()) as loader:
        before = loader.state_dict()
        with pytest.raises(UsageError, match=f"{value} batches|`epoch={value}`"):
            loader.load_state_dict({**before, what: value})  # type: ignore[dict-item]
        assert loader.state_dict() == before


def test_the_same_global_batches_go_on_with_other_ranks(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(shuffle=True), backend) as loader:
        want = [sorted(index.tolist()) for *_, index in loader]
        loader.set_epoch(0)
        iterator = iter(loader)
        for _ in range(3):
            next(iterator)
        state = loader.state_dict()
    ranks = []
    for rank in range(2):
        with open_loader(jpegs, None, spec(shuffle=True, batch_size=BATCH // 2, world_size=2, rank=rank), backend) as loader:
            loader.load_state_dict(state)
            ranks.append([index.tolist() for *_, index in loader])
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == want[3:]


def test_a_state_of_an_earlier_version_is_taken_by_what_it_says(backend: str, jpegs: Beton) -> None:
    earlier = {"epoch": 3, "batch": 2, "global_batch_size": BATCH, "records": N}
    with open_loader(jpegs, None, spec(shuffle=True), backend) as loader:
        loader.load_state_dict(earlier)
        assert earlier.items() <= loader.state_dict().items()
        for name in ("global_batch_size", "records"):
            with pytest.raises(UsageError, match=f"'{name}': None"):
                loader.load_state_dict({k: v for k, v in earlier.items() if k != name})


# -- epochs that follow one another --------------------------------------------------------------------------------------


def test_a_finished_epoch_is_followed_by_the_next(backend: str, jpegs: Beton) -> None:
    want = [one_pass(jpegs, backend, epoch=epoch, **AUGMENTED) for epoch in range(3)]
    assert not same(want[0], want[1])
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        assert all(same(list(loader), batches) for batches in want)
        loader.set_epoch(1)  # still rules
        assert same(list(loader), want[1])
        iterator = iter(loader)
        got = [next(iterator) for _ in range(len(loader))]  # all of them, but never asked for one more
        assert same(got, want[2])
        next(iter(loader))
        assert loader.epoch == 3  # begun and abandoned: begins again
        next(iter(loader))
        assert loader.epoch == 3


def test_an_evaluation_is_the_same_every_time(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        assert same(list(loader), list(loader))


def test_a_running_iteration_keeps_what_it_began_with(backend: str, jpegs: Beton) -> None:
    want = one_pass(jpegs, backend, epoch=2, **AUGMENTED)
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.set_epoch(2)
        iterator = iter(loader)
        got = [next(iterator)]
        loader.set_epoch(7)
        loader.set_size(17)
        loader.set_records(np.arange(20))
        state = loader.state_dict()
        assert (state["epoch"], state["batch"], state["records"]) == (7, 0, 20)
        got += list(iterator)
        assert same(got, want)
        assert (loader.epoch, loader.state_dict()) == (7, state)  # where the next iteration begins
        after = list(loader)
    with open_loader(jpegs, np.arange(20), spec(**{**AUGMENTED, "size": 17}), backend) as loader:
        loader.set_epoch(7)
        assert same(after, list(loader))


def test_the_state_of_a_running_iteration_is_of_its_own_records(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        iterator = iter(loader)
        next(iterator)
        loader.set_size(17)  # changes no order
        next(iterator)
        assert loader.state_dict()["batch"] == 2


@pytest.mark.parametrize("epoch", [-1, 2**32, 1.5])
def test_what_is_no_epoch_is_refused(jpegs: Beton, epoch: float) -> None:
    with open_loader(jpegs, None, spec()) as loader, pytest.raises(UsageError, match=f"`epoch={epoch}`: must be a whole number"):
        loader.set_epoch(epoch)  # type: ignore[arg-type]
