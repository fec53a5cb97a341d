"""What may be added to a run: averages, accumulation, clipping, precision, compilation, blur-pool, larger batches."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import noisy_colours, run
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import training_step
from dp4tl_fast.loaders.contract import IndexedBatch
from dp4tl_fast.pretraining.config import OPTIMIZERS, AttackConfig, CheckpointConfig, MocoConfig, PretrainConfig
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.feed import split
from dp4tl_fast.training.loop import Stepping, gradients
from dp4tl_fast.training.optimizer import make_optimizer
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.supervised import Supervised


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("data"), "s", (16, 16, 16))


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def cut_after_first_epoch(whole, cut):
    """A copy of a run, as if it had been killed before its second checkpoint was written."""
    shutil.copytree(whole, cut, symlinks=True)
    for newer in checkpoint.checkpoints(cut / "checkpoint")[1:]:
        shutil.rmtree(newer)
    (cut / "summary.json").unlink()


# -- the average ------------------------------------------------------------------------------------------------------


def test_the_average_is_the_formula():
    network = models.build("small-4", 3)
    ema, wanted = Ema(network, 0.9), network.fc.weight.detach().clone()
    for step in range(1, 12):
        with torch.no_grad():
            network.fc.weight += 1
            network.stem[1].num_batches_tracked += 1
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * network.fc.weight.detach()
    torch.testing.assert_close(ema.model.fc.weight, wanted)
    assert int(ema.model.stem[1].num_batches_tracked) == 11
    assert not any(p.requires_grad for p in ema.model.parameters())


@pytest.mark.parametrize("extra", [{}, {"accumulate": 2, "clip_norm": 0.5, "optimizer": "adamw", "lr": 0.003}])
def test_the_average_is_validated_and_resumes_to_the_same_bits(data, tmp_path, extra):
    options = {"ema_decay": 0.8, "val": str(data), "checkpoint": CheckpointConfig(keep_last=3), **extra}
    summary = run(data, tmp_path / "whole", **options)
    assert {"val_top_1", "val_ema_top_1"} <= summary.keys()
    cut_after_first_epoch(tmp_path / "whole", tmp_path / "cut")
    run(data, tmp_path / "cut", resume=True, **options)
    for name in (checkpoint.WEIGHTS, checkpoint.EMA):
        a, b = (load_file(checkpoint.checkpoints(tmp_path / d / "checkpoint")[-1] / name) for d in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert metrics(tmp_path / "whole")[-1]["val_ema_top_1"] == metrics(tmp_path / "cut")[-1]["val_ema_top_1"]
    newest = checkpoint.checkpoints(tmp_path / "whole/checkpoint")[-1]
    average, meta = checkpoint.load_model(newest / checkpoint.EMA)  # a file to give to finetune, too
    plain, _ = checkpoint.load_model(tmp_path / "whole")
    assert meta["arch"] == "small-4" and not torch.equal(average.fc.weight, plain.fc.weight)


# -- gradients --------------------------------------------------------------------------------------------------------


class Plain:
    device = torch.device("cpu")

    def __call__(self, images, index, epoch):
        return images


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.ReLU(), nn.Linear(8, 5))


def gradient(batch, how):
    model = network()
    run = Run(model, Supervised(), torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=False))
    loss = gradients(run, Plain(), batch, how)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()]), run.tally


def test_accumulated_parts_give_the_gradient_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    batch = IndexedBatch(torch.randn(10, 3, 4, 4, generator=generator), torch.arange(10) % 5, torch.arange(10))
    loss, whole, tally = gradient(batch, Stepping())
    torch.testing.assert_close(loss, F.cross_entropy(network()(batch[0]), batch[1]).detach())
    for parts in (2, 4, 99):  # 4 parts of 3, 3, 2, 2: each weighs by its images
        again, accumulated, sums = gradient(batch, Stepping(accumulate=parts))
        torch.testing.assert_close(accumulated, whole)
        torch.testing.assert_close(again, loss)
        for name in ("loss", "top_1", "top_5"):
            torch.testing.assert_close(sums.sums[name], tally.sums[name], rtol=1e-6, atol=0)  # float32 means, summed


def test_split_keeps_views_together():
    a, b, y, i = (torch.arange(5) + 10 * k for k in range(4))
    parts = list(split(IndexedBatch((a, b), y, i), 2))
    assert [[t.tolist() for t in (*views, y, i)] for views, y, i in parts] == [
        [[0, 1, 2], [10, 11, 12], [20, 21, 22], [30, 31, 32]], [[3, 4], [13, 14], [23, 24], [33, 34]],
    ]  # fmt: skip


def test_clipping_bounds_the_step(data, tmp_path):
    """Plain descent at rate 1 for one step moves the weights by the clipped gradient."""
    common = {"epochs": 1, "batch_size": 48, "schedule": "constant", "lr": 1.0, "weight_decay": 0.0}
    run(data, tmp_path / "free", **common)
    run(data, tmp_path / "clipped", clip_norm=0.01, **common)
    torch.manual_seed(0)
    start = models.build("small-4", 3)
    moved = {}
    for name in ("free", "clipped"):
        end, _ = checkpoint.load_model(tmp_path / name)
        gaps = [(a - b).detach().flatten() for a, b in zip(start.parameters(), end.parameters(), strict=True)]
        moved[name] = float(torch.cat(gaps).norm())
    assert moved["clipped"] == pytest.approx(0.01, rel=1e-3) and moved["free"] > 0.1


def test_the_rate_scales_with_the_batch(data, tmp_path):
    assert PretrainConfig(source="", out="", lr=0.1, lr_batch=256, batch_size=1024).peak_lr == pytest.approx(0.4)
    assert PretrainConfig(source="", out="", lr=0.1, batch_size=1024).peak_lr == 0.1
    run(data, tmp_path / "r", lr=0.1, lr_batch=16, batch_size=8, schedule="constant", epochs=1)
    assert metrics(tmp_path / "r")[0]["lr"] == pytest.approx(0.05)


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_resumes_to_the_same_bits(data, tmp_path, precision):
    options = {"precision": precision, "checkpoint": CheckpointConfig(keep_last=5), "epochs": 5, "flip": False}
    run(data, tmp_path / "whole", **options)
    rows = metrics(tmp_path / "whole")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    state = checkpoint.load_state(checkpoint.checkpoints(tmp_path / "whole/checkpoint")[-1])
    assert bool(state["scaler"]) == (precision == "fp16")  # losses are scaled only where small gradients vanish
    cut_after_first_epoch(tmp_path / "whole", tmp_path / "cut")
    run(data, tmp_path / "cut", resume=True, **options)
    a, b = (load_file(checkpoint.find_weights(tmp_path / name)) for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) and a[k].dtype != torch.float16 for k in a)


def test_a_run_goes_on_in_the_precision_that_it_began_with(data, tmp_path, monkeypatch):
    """Where ``auto`` chose it, on a machine that would choose another."""
    options = {"precision": "auto", "checkpoint": CheckpointConfig(keep_last=5), "flip": False}
    for name, precision in (("whole", "bf16"), ("other", "fp32")):
        monkeypatch.setenv("DP4TL_FAST_WAYS", f"training={precision}")
        training_step.faster.cache_clear()
        assert run(data, tmp_path / name, **options)["precision"] == {"bf16": "bfloat16", "fp32": "float32"}[precision]
    cut_after_first_epoch(tmp_path / "whole", tmp_path / "cut")
    assert run(data, tmp_path / "cut", resume=True, **options)["precision"] == "bfloat16"
    training_step.faster.cache_clear()
    whole, cut, other = (load_file(checkpoint.find_weights(tmp_path / name)) for name in ("whole", "cut", "other"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole) and not all(torch.equal(whole[k], other[k]) for k in whole)


@pytest.mark.parametrize("clip_norm", [0.0, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_scaling_skips_a_first_step_that_overflows(name, clip_norm):
    """A gradient of 2^14 overflows fp32 once it is scaled by 2^120: no weight moves, the scale falls, and nothing remembers it."""
    steps = {}
    for skipped in (True, False):
        model, goal = network(), Supervised()
        optimizer = make_optimizer([*model.parameters(), *goal.parameters()], name, 0.1, 0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120 if skipped else 2.0**10, growth_interval=10**6)
        run = Run(model, goal, optimizer, scaler)
        before = [p.detach().clone() for p in model.parameters()]
        for size in ((2.0**14, 1e-3) if skipped else (1e-3,)):
            batch = IndexedBatch(size * torch.ones(4, 3, 4, 4), torch.arange(4), torch.arange(4))
            gradients(run, Plain(), batch, Stepping())
            if clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(run.parameters, clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if size > 1:
                assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
                assert scaler.get_scale() == 2.0**119
                scaler.update(2.0**10)
        steps[skipped] = [p.detach() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(steps[True], steps[False], strict=True))


# -- the network ------------------------------------------------------------------------------------------------------


def test_blur_pool(data, tmp_path):
    """Strided convolutions see a blurred input, names and shapes of weights stay, and a checkpoint says so."""
    plain, blurred = (models.build("resnet18", 3, blur_pool=b).eval() for b in (False, True))
    blurred.load_state_dict(plain.state_dict())
    conv, x = blurred.layer2[0].conv1, torch.randn(2, 64, 9, 9)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    smooth = F.conv2d(F.pad(x, (1, 1, 1, 1)).transpose(0, 1).reshape(-1, 1, 11, 11), kernel[None, None])
    smooth = smooth.reshape(64, 2, 9, 9).transpose(0, 1)
    torch.testing.assert_close(conv(x), F.conv2d(smooth, conv.weight, stride=2, padding=1), rtol=1e-4, atol=1e-5)
    changed = [n for n, m in blurred.named_modules() if isinstance(m, models.BlurPoolConv2d)]
    assert len(changed) == 6 and "conv1" not in changed  # the stem has three channels only
    run(data, tmp_path / "r", arch="small-16", blur_pool=True, epochs=1)
    model, meta = checkpoint.load_model(tmp_path / "r")
    assert meta["blur_pool"] and any(isinstance(m, models.BlurPoolConv2d) for m in model.modules())


def test_networks_with_classifiers_on_the_way_have_one():
    network = models.build("googlenet", 3).train()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3) and models.head(network)[0] == "fc"


@pytest.mark.parametrize("objective", ["supervised", "moco", "adversarial"])
def test_a_compiled_network_survives_another_resolution(data, tmp_path, monkeypatch, objective):
    """Traced and differentiated by the compiler; the traced operations then run as they are, for its C++ takes a minute."""
    from torch._dynamo.utils import counters

    compile_, compiled = nn.Module.compile, []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **o: compiled.append(o) or compile_(self, backend="aot_eager", **o))
    options = {"epochs": 2, "end_size": 24, "end_size_from": 1, "objective": objective, "moco": MocoConfig(queue=16),
               "checkpoint": CheckpointConfig(keep_last=2)}  # fmt: skip
    run(data, tmp_path / "plain", **options)
    torch._dynamo.reset()
    counters.clear()
    run(data, tmp_path / "compiled", compile=True, **options)
    assert compiled == [{"dynamic": False}]
    passes = 2 if objective == "adversarial" else 1  # the attack looks at the network in eval mode
    assert counters["stats"]["unique_graphs"] == 2 * passes and not counters["graph_break"]  # one for each resolution
    a, b = (load_file(checkpoint.find_weights(tmp_path / name)) for name in ("plain", "compiled"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # float32 operations in other forms, over twelve steps
    cut_after_first_epoch(tmp_path / "compiled", tmp_path / "cut")
    torch._dynamo.reset()
    run(data, tmp_path / "cut", compile=True, resume=True, **options)  # names of weights are the plain network's
    c = load_file(checkpoint.find_weights(tmp_path / "cut"))
    assert all(torch.equal(b[k], c[k]) for k in b)


def test_refusals():
    for changes, complaint in (
        ({"ema_decay": 1.0}, "`ema_decay=1.0`"), ({"clip_norm": -1.0}, "`clip_norm=-1.0`"), ({"accumulate": 0}, "`accumulate=0`"),
        ({"forgetting": True, "selection": "s.json"}, "`forgetting`: counts over the whole source"),
        ({"schedule": "linear"}, "`schedule=linear`"), ({"end_size": -5}, "`end_size=-5`"), ({"val_size": -1}, "`val_size=-1`"),
        ({"objective": "moco_v3", "val": "v.beton"}, "moco_v3 trains no classifier"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=complaint):
            PretrainConfig(source="s", out="o", **changes)
    for refused, complaint in (
        (lambda: CheckpointConfig(keep_last=0), "`checkpoint.keep_last=0`"),
        (lambda: CheckpointConfig(every=0), "`checkpoint.every=0`"),
        (lambda: MocoConfig(queue=0), "`moco.queue=0`"), (lambda: MocoConfig(momentum=1.5), "`moco.momentum=1.5`"),
        (lambda: AttackConfig(norm="l1"), "`adv.norm=l1`"), (lambda: AttackConfig(eps=0.0), "`adv.eps=0.0`"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=complaint):
            refused()
