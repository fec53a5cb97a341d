"""The day with a GPU, rehearsed on the CPU: every part runs, fails alone, and its figures pass for no GPU's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import jpeg, picture, write

from benchmarks import kernel_checks
from benchmarks.__main__ import main
from benchmarks.gpu_day import checks, command, loaders
from benchmarks.gpu_day.command import run_stage
from benchmarks.gpu_day.photos import photo, photos
from benchmarks.gpu_day.setting import Setting
from benchmarks.gpu_day.stages import LIMIT, STAGES, Stage
from benchmarks.harness import Suite
from benchmarks.summary import write_results
from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import LoaderSpec, open_loader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return write(tmp_path_factory.mktemp("suites") / "small.beton", [jpeg(picture(60, 50, i)) for i in range(30)])


@pytest.mark.parametrize("number", STAGES)
def test_every_stage_runs_whole(number: int, tmp_path: Path) -> None:
    assert main(["gpu_day", "--rehearse", "--stage", str(number), "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    assert file.name == f"rehearsal-gpu_day-{number}.json"
    result = json.loads(file.read_text())
    assert [part["part"] for part in result["parts"]] == [part.name for part in STAGES[number].parts]
    assert not any("failed" in part for part in result["parts"]) and result["rehearsal"] is True
    assert {row["suite"] for row in result["rows"]} == {"gpu_day-rehearsal"}
    cases = " ".join(row["case"] for row in result["rows"])
    promised = {
        1: "kernels-equal-references batches-equal preprocessing amp compile resume-weights",
        2: "label_counts-gpu-bf16 label_counts-gpu-fp32 matrix-gpu nearest_centroid-gpu-bf16 from-host",
        3: "images-on-the-device copy-limit resnet18 resnet50",
        4: "demo-speedup demo-lp_mean demo-ff_mean",
    }[number]
    assert all(case in cases for case in promised.split())
    with pytest.raises(SystemExit, match="a rehearsal measures nothing"):
        write_results(tmp_path)


def test_a_stage_fits_into_its_time() -> None:
    assert list(STAGES) == [1, 2, 3, 4]
    for stage in STAGES.values():
        assert sum(part.seconds for part in stage.parts) <= LIMIT < 480
        assert len({part.name for part in stage.parts}) == len(stage.parts)
        assert all(callable(part.load()) and part.look_at for part in stage.parts)


def test_a_part_that_fails_or_hangs_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    # The processes import STAGES anew: the parts are found there by number.
    parts = tuple(STAGES[1].parts[i] for i in (2, 2, 0))
    monkeypatch.setitem(STAGES, 1, Stage("three", parts))
    calls = iter(["", "fail", ""])
    plain = command.call_within

    def call(seconds, function, **arguments):
        return plain(seconds, function, **(arguments if next(calls) == "" else {**arguments, "part": 99}))

    monkeypatch.setattr(command, "call_within", call)
    assert not run_stage(1, tmp_path, rehearsal=True)
    result = json.loads((tmp_path / "rehearsal-gpu_day-1.json").read_text())
    first, failed, last = result["parts"]
    assert "failed" not in first and "failed" not in last
    assert "IndexError" in failed["failed"] and failed["look_at"] == parts[1].look_at
    assert f"look at {parts[1].look_at}" in capfd.readouterr().err


def test_a_rehearsal_cannot_write_into_the_results(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["gpu_day", "--rehearse", "--out", str(command.RESULTS)])
    assert stop.value.code == 2 and "belongs elsewhere" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu_day", "--stage", "1"]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err


def test_help_lists_what_to_carry(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["gpu_day", "--help"])
    told = capsys.readouterr().out
    script = (Path(command.__file__).parents[2] / "scripts/pack_for_gpu.sh").read_text()
    for wheel in ("jsonargparse", "docstring-parser", "typeshed-client", "importlib-resources"):
        assert wheel in told and wheel in script
    assert "64 MiB" in told and "libjpeg.so.62" in told


def test_a_wrong_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "cluster_sums", lambda x, index, k, implementation: torch.ones(k, x.shape[1]).double())
    with pytest.raises(SystemExit, match=r"\['cluster_sums'\] differ from the reference on cpu: rows="):
        kernel_checks.check_kernels("cpu", cases=1, most=(9, 9, 9))


def test_other_images_after_a_resume_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = checks._run
    monkeypatch.setattr(checks, "_run", lambda setting, name, **more: plain(setting, name, seed=int(name == "stopped"), **more))
    try:
        with pytest.raises(SystemExit, match="saw other images than the whole run from step 0 on"):
            checks.resume(Suite(name="gpu_day"), Setting(folder=tmp_path, rehearsal=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_photos_are_the_same_each_time_and_cost_what_photographs_do(tmp_path: Path) -> None:
    assert np.array_equal(photo(3, 64, 48), photo(3, 64, 48)) and not np.array_equal(photo(3, 64, 48), photo(4, 64, 48))
    large = photos(tmp_path, 8, 4, 500, 375)
    assert large.num_samples == 8 and large.class_counts.tolist() == [2, 2, 2, 2]
    assert 60_000 < large.sizes.mean() < 140_000  # ImageNet's: 110 kB


@pytest.mark.filterwarnings("ignore:The image decoding")  # torchvision says that it will leave it to TorchCodec
def test_the_peer_delivers_what_the_backends_do(beton: Beton) -> None:
    options = {"batch_size": 16, "size": 32, "transform": "random_resized_crop", "flip": True, "dtype": "float16"}
    spec = LoaderSpec(**options, with_index=True)
    peer = loaders.Torchvision(beton, 30, spec)
    batches = list(peer)
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert images.dtype == torch.float16 and [len(b[1]) for b in batches] == [16, 14]
    records = np.random.default_rng(0).permutation(30)
    assert labels.tolist() == beton.labels[records].tolist()
    with open_loader(beton, None, spec, "torchvision") as oracle:
        wanted = torch.cat([x for x, *_ in oracle])[records]
    # Its own JPEG library may round another way, and it rounds to whole levels: a level is below 0.02.
    assert (images.float() - wanted.float()).abs().max() <= 0.04


@pytest.mark.filterwarnings("ignore:The image decoding")
def test_a_backend_that_is_not_installed_is_left_out_by_name(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loaders.BACKENDS, "ffcv", ("no such backend", True))
    suite = Suite(name="gpu_day")
    loaders.measure(suite, beton, "cpu", images=24, batch=8, size=16)
    subjects = {row.subject for row in suite.rows if row.case == "images-on-the-device"}
    assert subjects == {"native", "dali", "dali-cpu", "torchvision"}
    result: dict = {"rows": [], "goals": []}
    suite.add_to(result)
    assert "unknown backend 'no such backend'" in result["left_out"]["gpu_day"]["ffcv"]
