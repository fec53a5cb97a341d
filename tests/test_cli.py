"""Commands as a user meets them: flags, help, exit codes, one-line errors, JSON."""

import dataclasses
import errno
import json
import subprocess
import sys
import threading

import pytest
from PIL import Image

from dp4tl_fast.__main__ import COMMANDS
from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.beton import BetonWriter
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError


def test_every_command_teaches(capsys):
    for name in COMMANDS:
        assert dispatch([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--json" in text and "_" not in "".join(w for w in text.split() if w.startswith("--")), name
    assert dispatch(["--help"]) == 0 and dispatch([]) == 2 and dispatch(["frobnicate"]) == 2


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom dp4tl_fast.__main__ import COMMANDS, main\n"
        "for name in COMMANDS:\n    main([name, '--help'])\n    print(name, 'torch' in sys.modules, file=sys.stderr)"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert text.split() == [word for name in COMMANDS for word in (name, "False")]


def example(*, count: int, name: str = "x", loud: bool = True, items: list[str] = []):  # noqa: B006
    """Do it.

    Args:
        count: How often.
        name: Whose.
        loud: Or not.
        items: What.
    """
    return {"count": count, "name": name, "loud": loud, "items": items}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--count", "3"], {"count": 3, "name": "x", "loud": True, "items": []}),
        (
            ["--count=3", "--no-loud", "--items", "a", "--items", "b"],
            {"count": 3, "name": "x", "loud": False, "items": ["a", "b"]},
        ),
        (["--count=3", "--loud", "--name=y"], {"count": 3, "name": "y", "loud": True, "items": []}),
        (["--count=3", "--loud", "false"], {"count": 3, "name": "x", "loud": False, "items": []}),
    ],
)
def test_flags(argv, expected, capsys):
    assert cli.run(example, [*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_yaml_and_overrides(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("count: 5\nname: file\nitems: [p]\n")
    assert cli.run(example, ["--config", str(tmp_path / "c.yaml"), "--name", "flag", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"count": 5, "name": "flag", "loud": True, "items": ["p"]}
    (tmp_path / "bad.yaml").write_text("count: 5\nsurprise: 1\n")
    assert cli.run(example, ["--config", str(tmp_path / "bad.yaml")]) == 2


@pytest.mark.parametrize("argv", [[], ["--count", "many"], ["--count", "3", "--unknown", "1"]])
def test_bad_usage_is_2(argv, capsys):
    assert cli.run(example, argv) == 2
    assert capsys.readouterr().out == ""


def test_an_error_of_the_system_is_one_line_unless_it_is_a_bug(capsys):
    errors = {
        "denied": PermissionError(errno.EACCES, "Permission denied", b"/some/where"),
        "bug": OSError(errno.EBADF, "Bad file descriptor"),
        "other": ValueError("no error of the system"),
    }

    def fail(*, which: str):
        """Fail."""
        raise errors[which]

    assert cli.run(fail, ["--which=denied"]) == 2
    assert capsys.readouterr().err == "dp4tl-fast fail: /some/where: Permission denied\n"
    for which in ("bug", "other"):
        with pytest.raises((OSError, ValueError)):
            cli.run(fail, [f"--which={which}"])


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (200, 30, 90)).save(path)


@pytest.fixture
def place(tmp_path):
    """Good and bad inputs side by side."""
    (tmp_path / "empty").mkdir()
    image(tmp_path / "hollow/a/1.jpg")
    (tmp_path / "hollow/b").mkdir()
    image(tmp_path / "text/a/1.jpg")
    (tmp_path / "text/a/2.jpg").write_text("not an image")
    with BetonWriter(tmp_path / "s.beton", capacity=2) as writer:
        for i in range(2):
            writer.append(b"abc", 1, 1, 1, label=i, index=i)
        writer.close()
    (tmp_path / "junk.beton").write_bytes(b"\x02\x00" * 40)
    return tmp_path


BAD = {
    "convert-missing": (["convert", "{d}/nowhere", "{d}/o.beton"], "nowhere"),
    "convert-empty": (["convert", "{d}/empty", "{d}/o.beton"], "empty"),
    "convert-hollow-class": (["convert", "{d}/hollow", "{d}/o.beton"], "class folder 'b' has no images"),
    "convert-not-an-image": (["convert", "{d}/text", "{d}/o.beton"], "2.jpg"),
    "convert-onto-a-folder": (["convert", "{d}/hollow", "{d}/empty"], "OUT {d}/empty: is a folder"),
    "convert-below-a-file": (["convert", "{d}/hollow", "{d}/s.beton/o.beton"], "s.beton is not a writable folder"),
    "convert-onto-its-source": (["convert", "{d}/junk.beton", "{d}/junk.beton"], "OUT {d}/junk.beton: is also an input"),
    "relayout-onto-a-folder": (["relayout", "{d}/s.beton", "{d}/empty"], "OUT {d}/empty: is a folder"),
    "relayout-onto-its-source": (["relayout", "{d}/s.beton", "{d}/s.beton"], "OUT {d}/s.beton: is also an input"),
    "subset-onto-a-folder": (["subset", "{d}/s.beton", "{d}/empty", "--classes=0"], "OUT {d}/empty: is a folder"),
    "merge-onto-a-folder": (["merge", "{d}/empty"], "OUT {d}/empty: is a folder"),
    "prune-keep-0": (["prune", "--source={d}/s.beton", "--method=random", "--keep=0", "--out={d}/o.json"], "--keep 0"),
    "prune-keep-above-1": (
        ["prune", "--source={d}/s.beton", "--method=random", "--keep=1.5", "--out={d}/o.json"],
        "--keep 1.5",
    ),
    "prune-method": (["prune", "--source={d}/s.beton", "--method=magic", "--keep=1", "--out={d}/o.json"], "magic"),
    "prune-junk-source": (
        ["prune", "--source={d}/junk.beton", "--method=random", "--keep=1", "--out={d}/o.json"],
        "junk.beton",
    ),
    "pretrain-no-source": (["pretrain", "--source={d}/no.beton", "--out={d}/o"], "no.beton"),
    "pretrain-no-selection": (
        ["pretrain", "--source={d}/s.beton", "--selection={d}/no.json", "--out={d}/o"],
        "no.json",
    ),
    "pretrain-backend": (
        ["pretrain", "--source={d}/s.beton", "--backend=turbo", "--out={d}/o", "--arch=small-4"],
        "turbo",
    ),
    "pretrain-objective": (["pretrain", "--source={d}/s.beton", "--objective=x", "--out={d}/o"], "objective x"),
    "finetune-no-checkpoint": (
        ["finetune", "--checkpoint={d}/no", "--train={d}/s.beton", "--test={d}/s.beton", "--out={d}/o"],
        "no such file or folder",
    ),
    "report-nothing": (["report", "{d}/empty", "--out={d}/o.html"], "no finished pretraining run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, place, capsys):
    argv, needle = BAD[case]
    before = sorted(p.name for p in place.iterdir())
    assert dispatch([a.format(d=place) for a in argv]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("dp4tl-fast ")]
    assert len(lines) == 1 and needle.format(d=place) in lines[0] and "Traceback" not in err and out == ""
    assert sorted(p.name for p in place.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize(("backend", "module"), [("ffcv", "ffcv"), ("dali", "nvidia.dali")])
def test_a_backend_that_is_not_installed_is_one_clear_line_at_the_start(backend, module, place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    source = f"--source={place / 's.beton'}"
    assert dispatch(["pretrain", source, f"--backend={backend}", f"--out={place / 'o'}", "--arch=small-4"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dp4tl-fast ")]
    assert len(lines) == 1 and f"{backend!r} needs {module}, not installed here. Run `pip install" in lines[0]
    assert not (place / "o").exists()


def test_both_spellings_are_one_command():
    direct = subprocess.run([sys.executable, "-m", "dp4tl_fast.prune", "--help"], capture_output=True, text=True)
    named = subprocess.run([sys.executable, "-m", "dp4tl_fast", "prune", "--help"], capture_output=True, text=True)
    assert direct.returncode == named.returncode == 0
    assert direct.stdout == named.stdout and direct.stdout.startswith("usage: dp4tl-fast prune")


def test_a_target_of_other_channels_is_refused(place, capsys):
    """One-channel arrays, as FFCV stores them in an ndarray field, are no RGB images."""
    import numpy as np
    import torch
    from ffcv.fields import IntField, NDArrayField
    from ffcv.writer import DatasetWriter

    from dp4tl_fast.training import checkpoint, models

    grey = [(np.zeros((1, 8, 8), np.uint8), i) for i in range(2)]
    fields = {"image": NDArrayField(np.dtype(np.uint8), (1, 8, 8)), "label": IntField()}
    DatasetWriter(str(place / "grey.beton"), fields, num_workers=1).from_indexed_dataset(grey)
    torch.save(models.build("small-4", 2).state_dict(), place / "w.pt")
    assert checkpoint.load_model(place / "w.pt", "small-4")
    capsys.readouterr()
    argv = [
        "prune",
        "--source",
        str(place / "s.beton"),
        "--target",
        str(place / "grey.beton"),
        "--surrogate",
        str(place / "w.pt"),
    ]
    assert dispatch([*argv, "--arch=small-4", "--keep=1", f"--out={place / 'o.json'}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dp4tl-fast ")]
    assert len(lines) == 1 and "grey.beton" in lines[0] and "RGB" in lines[0]
    assert not (place / "o.json").exists()


@dataclasses.dataclass(kw_only=True)
class Inner:
    """Inner settings.

    Args:
        depth: How deep.
    """

    depth: int = 1


@dataclasses.dataclass(kw_only=True)
class Outer:
    """Settings.

    Args:
        path: Where.
        inner_size: A name that looks like a former one.
        inner: Inner settings.
    """

    RENAMED = {"inner_depth": "inner.depth", "old_size": "inner_size"}  # noqa: RUF012

    path: str
    inner_size: int = 0
    inner: Inner = dataclasses.field(default_factory=Inner)


def nested(config: Outer):
    """Do it."""
    cli.message("next time give `inner_size=3`")
    if config.inner_size < 0:
        raise UsageError(f"`inner_size={config.inner_size}` and `inner.depth`: `dp4tl-fast x --y` and `unknown=3` stay, `path` too")
    return dataclasses.asdict(config)


def test_former_names_work_in_flags_and_files_with_a_note(tmp_path, capsys):
    expected = {"path": "p", "inner_size": 7, "inner": {"depth": 5}}
    former = tmp_path / "former.yaml"
    former.write_text("inner_depth: 5\nold_size: 7\n")
    for argv in (
        ["--path=p", "--inner-depth=5", "--old-size", "7"],
        ["--path=p", "--inner.depth", "5", "--inner-size=7"],
        [f"--config={former}", "--path=p"],
        ["--config", str(former), "--path=p", "--inner.depth=5"],
    ):
        assert cli.run(nested, [*argv, "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == expected
        notes = [line for line in err.splitlines() if line.startswith("note: ")]
        assert len(notes) == (0 if "--inner-size=7" in argv else 2)
    assert notes == [f"note: {former}: inner_depth is now called inner.depth", f"note: {former}: old_size is now called inner_size"]


def test_parameters_in_messages_become_this_commands_flags(capsys):
    assert cli.run(nested, ["--path=p", "--inner-size=-1"]) == 2
    assert capsys.readouterr().err == (
        "next time give --inner-size 3\n"
        "dp4tl-fast nested: --inner-size -1 and --inner.depth: `dp4tl-fast x --y` and `unknown=3` stay, --path too\n"
    )


def test_a_command_runs_outside_the_main_thread(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.run(nested, ["--path=p", "--json"])))
    thread.start()
    thread.join()
    assert codes == [0] and json.loads(capsys.readouterr().out)["path"] == "p"
    cli.message("`path` is spelled as a parameter again")
    assert capsys.readouterr().err == "`path` is spelled as a parameter again\n"
