"""Bad input to the prune command: one clear line, exit code 2, nothing written."""

import pytest
import torch
from pruning_data import run
from safetensors.torch import load_file, save_file

from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.training import checkpoint, models


@pytest.fixture(scope="module")
def bad(data, tmp_path_factory):
    """Weights that cannot work."""
    root = tmp_path_factory.mktemp("bad")
    tensors = load_file(checkpoint.find_weights(data / "surrogate"))
    grey = {k: v.mean(1, keepdim=True).contiguous() if k == "stem.0.weight" else v for k, v in tensors.items()}
    save_file(grey, root / "grey.safetensors")
    save_file({k: v * torch.nan if k == "stem.0.weight" else v for k, v in tensors.items()}, root / "nan.safetensors")
    save_file({k: v * torch.nan if k == "fc.weight" else v for k, v in tensors.items()}, root / "head.safetensors")
    wide = {k: torch.cat([v, v[:1]]) if k.startswith("fc.") else v for k, v in tensors.items()}
    save_file(wide, root / "wide.safetensors")
    save_file({k: v * 0 if k.startswith("stem") else v for k, v in tensors.items()}, root / "dead.safetensors")  # all images alike
    torch.manual_seed(1)
    torch.save(models.build("small-4", 4).state_dict(), root / "untrained.pt")
    return root


REFUSED = {
    "class-counts": (["--surrogate={b}/wide.safetensors"], "knows 5 classes, but"),
    "channels": (["--surrogate={b}/grey.safetensors"], "1 of another shape (e.g. stem.0.weight)"),
    "nan-features": (["--surrogate={b}/nan.safetensors"], "not finite"),
    "nan-logits": (["--surrogate={b}/head.safetensors"], "not finite"),
    "nan-gradients": (["--surrogate={b}/nan.safetensors", "--method=grand"], "features or logits of record 0"),
    "clusters": (["--surrogate={d}/surrogate", "--method=fm", "--groups=kmeans", "--clusters=49"], "--clusters 49"),
    "keeps-nothing": (["--surrogate={d}/surrogate", "--budget=0.01"], "--budget 0.01: keeps nothing"),
    "no-clusters": (["--surrogate={d}/surrogate", "--method=ssl-prototypes", "--clusters=-3"], "--clusters -3"),
    "cache-is-a-file": (["--surrogate={d}/surrogate", "--cache={d}/red.beton"], "--cache {d}/red.beton/features: cannot be"),
    "out-is-a-folder": (["--surrogate={d}/surrogate", "--out={d}"], "--out {d}: is a folder"),
    "report-below-a-file": (["--surrogate={d}/surrogate", "--report={d}/red.beton/r.html"], "is not a writable folder"),
    "out-is-the-source": (["--surrogate={d}/surrogate", "--out={d}/source.beton"], "source.beton: is also an input"),
    "materialize-is-the-target": (["--method=random", "--materialize={d}/red.beton"], "red.beton: is also an input"),
    "seed": (["--method=random", "--seed=-1"], "--seed -1"),
    "surrogate-epochs": (["--train-surrogate={d}/new", "--surrogate-epochs=-1"], "--surrogate-epochs -1"),
    "two-surrogates": (["--surrogate={d}/surrogate", "--train-surrogate={d}/new"], "give one of them"),
    "not-weights": (["--surrogate={d}/source.info.zip"], "source.info.zip: not a state dict"),
    "keep-and-budget": (["--surrogate={d}/surrogate", "--keep=1", "--budget=0.1"], "give one of them"),
    "neither": (["--surrogate={d}/surrogate"], "Give --keep"),
    "no-surrogate": (["--keep=1"], "needs --surrogate"),
    "untrained": (["--surrogate={b}/untrained.pt"], "hardly better than guessing"),
    "untrained-features": (["--surrogate={b}/dead.safetensors", "--method=fm"], "hardly better than guessing"),
    "surrogate-val": (["--surrogate={d}/surrogate", "--surrogate-val={d}/nothing.beton"], "nothing.beton"),
    "keep-zero": (["--surrogate={d}/nothing", "--keep=0"], "--keep 0"),
    "budget-above-1": (["--surrogate={d}/nothing", "--budget=1.5"], "--budget 1.5: must be a share of an epoch"),
    "merge": (["--surrogate={d}/surrogate", "--keep=1", "--merge=magic"], "sum, union or turns"),
    "handpicked": (["--method=handpicked", "--classes=unicorn"], "--classes unicorn"),
    "auto": (["--method=random", "--keep=auto"], "no votes"),
    "no-forgetting": (["--method=forgetting", "--surrogate={b}/wide.safetensors", "--keep=1"], "--forgetting"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_line(data, bad, tmp_path, capsys, case):
    flags, needle = REFUSED[case]
    arguments = [f.format(d=data, b=bad) for f in flags]
    if not any(word in flag for flag in flags for word in ("--keep", "--budget")) and case != "neither":
        arguments.append("--keep=1")
    if "{b}" in flags[0] or case == "no-forgetting":
        arguments += ["--arch=small-4", "--size=16"]
    common = [f"--source={data / 'source.beton'}", f"--target={data / 'red.beton'}", f"--out={tmp_path / 'o.json'}"]
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert dispatch(["prune", *common, *arguments]) == 2
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    text = capsys.readouterr().err.replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.startswith("dp4tl-fast ")]
    assert len(lines) == 1 and needle.format(d=data) in lines[0] and "Traceback" not in text
    assert not (tmp_path / "o.json").exists()


def test_an_empty_target_is_refused(data, tmp_path):
    from dp4tl_fast.beton import BetonWriter

    with BetonWriter(tmp_path / "empty.beton", capacity=0) as writer:
        writer.close()
    with pytest.raises(UsageError, match="no images"):
        run(data, tmp_path / "s.json", target=[str(tmp_path / "empty.beton")])
