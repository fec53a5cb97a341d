"""The numbers and tables of README and docs are generated, never typed."""

import re
from pathlib import Path

import numpy as np
import pytest
from small_runs import noisy_colours

from benchmarks.readme import blocks, fill
from dp4tl_fast import Beton, Selection

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.mark.parametrize("name", blocks())
def test_generated_blocks_are_up_to_date(name):
    text = (ROOT / name).read_text()
    assert fill(name) == text, "run `python -m benchmarks.readme`"
    assert "| --" in text


class Interrupted(Exception):
    pass


def test_the_own_training_loop_resumes_in_mid_epoch(tmp_path, monkeypatch):
    """The README's lines as they stand: interrupted in the second epoch and run again, they see what an undisturbed run sees."""
    block = re.search(r"## In your own training loop.*?```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    block = block.replace("batch_size=256, size=224", "batch_size=4, size=16, workers=1")
    beton = Beton(noisy_colours(tmp_path, "source", (9, 9, 9, 9)))
    Selection.of_classes(beton, np.array([0, 2]), method="lm", scores=np.arange(4.0)).save(tmp_path / "lm.json")
    monkeypatch.chdir(tmp_path)

    def run(checkpoint, stop_after=None):
        seen = []

        def train_step(images, labels):
            if len(seen) == stop_after:
                raise Interrupted
            seen.append((images.double().sum().item(), labels.tolist()))

        names = {"checkpoint": checkpoint, "epochs": 3, "train_step": train_step}
        if stop_after is None:
            exec(block, names)
        else:
            with pytest.raises(Interrupted):
                exec(block, names)
        return seen, names["checkpoint"]

    whole, _ = run(None)
    assert len(whole) == 3 * 5 and {label for _, labels in whole for label in labels} == {0, 2}
    assert whole[:5] != whole[5:10]  # another order, other crops
    for cut in (0, 3, 5, 7, 14):
        first, checkpoint = run(None, stop_after=cut)
        rest, _ = run(checkpoint)
        assert first + rest == whole
