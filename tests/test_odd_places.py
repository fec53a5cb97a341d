"""Every command in a thread that is not the main one, and in a folder whose name is not UTF-8."""

import csv
import json
import os
import threading
from importlib import import_module
from pathlib import Path

import pytest
from small_runs import noisy_colours
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dp4tl_fast.common.files import utf8_name
from dp4tl_fast.common.parser import Parser
from dp4tl_fast.selection import Selection

FAST = ["--batch-size=8", "--epochs=2", "--precision=fp32", "--workers=1"]


def call(name, *arguments):
    """The command's exit code, in a thread."""
    codes = []
    main = import_module(f"dp4tl_fast.{name}").main
    thread = threading.Thread(target=lambda: codes.append(main(list(map(str, arguments)))))
    thread.start()
    thread.join()
    return codes == [0]


def test_every_command_in_a_thread_and_a_folder_that_is_no_text(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    root.mkdir()
    for name in ("s", "t"):
        noisy_colours(root, name, (8, 8, 8))
    source, target, run, tuned = root / "s.beton", root / "t.beton", root / "run", root / "tuned"
    assert call("convert", root / "t", root / "u.beton", "--shard=0/1") and call("merge", root / "u.beton")
    assert call("inspect", source) and call("relayout", source, root / "v.beton")
    assert call("subset", source, root / "w.beton", "--classes=1")
    assert call("pretrain", f"--source={source}", f"--val={target}", f"--out={run}", "--arch=small-4", "--size=16", *FAST)
    with utf8_name(run) as opened:
        assert EventAccumulator(opened).Reload().Tags()["scalars"]
    assert call("pretrain", f"--config={run / 'config.yaml'}", f"--out={run}", "--resume")
    assert call("prune", f"--source={source}", f"--target={target}", f"--surrogate={run}", f"--out={root / 's.json'}", "--keep=2",
                "--accept-surrogate", "--workers=1", f"--report={root / 's.html'}")  # fmt: skip
    assert len(Selection.load(root / "s.json").kept_classes) == 2
    files = [f"--checkpoint={run}", f"--train={source}", f"--test={target}"]
    assert call("finetune", *files, f"--out={tuned}", "--mode=ff", "--seeds=1", *FAST)
    assert call("finetune", *files, f"--out={root / 'lp'}", "--mode=lp", "--seeds=1", *FAST)
    assert call("evaluate", tuned, target, f"--out={root / 'e'}")
    for kind in ("csv", "jsonl", "parquet"):
        assert call("predict", tuned, root / "t", f"--out={root / f'p.{kind}'}")
    with open(root / "p.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        named = [row["path"] for row in csv.DictReader(file)]
    assert len(named) == 24 and all(Path(name).is_file() for name in named)
    assert [json.loads(line)["path"] for line in (root / "p.jsonl").read_text().splitlines()] == named
    assert call("export", tuned, root / "n.pt2") and call("export", tuned, root / "n.onnx")
    assert call("report", run, f"--out={root / 'r.html'}") and call("report", root / "s.json", f"--out={root / 'r.html'}")


@pytest.mark.parametrize("given", ["a\udcff\udc80", "📦", "\x85\x9f"])
def test_a_parser_leaves_text_as_it_is(tmp_path, given):
    parser = Parser(prog="x")
    parser.add_argument("--config", action="config")
    parser.add_argument("--one", type=str)
    parser.add_argument("--several", type=list[str])
    found = parser.parse_args([f"--one={given}", f"--several={given}", f"--several={given}"])
    assert (found.one, found.several) == (given, [given, given])
    config = tmp_path / f"{given.strip()}.yaml"
    config.write_text("x_sha256: of a run\none: " + json.dumps(given) + "\n" if given != "📦" else f"x_sha256: 1\none: {given}\n")
    assert parser.parse_args([f"--config={config}"]).one == given
