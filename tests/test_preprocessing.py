"""What a network wants to see, and what it is shown: sizes that its positions are not learned for, interpolation."""

from __future__ import annotations

import pytest
import torch
from small_runs import noisy_colours, run
from test_foreign_weights import TIMM, opened, same_logits, snapshot

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.inference.config import EvaluateConfig, ExportConfig, PredictConfig
from dp4tl_fast.inference.evaluate import evaluate
from dp4tl_fast.inference.export import export
from dp4tl_fast.inference.predict import predict
from dp4tl_fast.inspect import main as inspect
from dp4tl_fast.training import checkpoint, models

SMALL = {"epochs": 1, "seeds": 1, "batch_size": 6, "precision": "fp32", "tensorboard": False, "workers": 1}


def test_positions_are_interpolated_for_another_size(tmp_path):
    """A transformer of timm's and one of torchvision's; the same size changes nothing."""
    model = snapshot(tmp_path / "s")
    kept = checkpoint.load_model(tmp_path / "s")[0]
    models.resize(kept, 160)
    assert same_logits(kept, model)
    network = opened(tmp_path / "s", size=96)
    with torch.no_grad():
        assert network.model(torch.zeros(1, 3, 96, 96)).shape == (1, 7)
    noisy_colours(tmp_path, "train", (4,) * 3)
    files = {"checkpoint": str(tmp_path / "s"), "train": str(tmp_path / "train.beton"), "test": str(tmp_path / "train.beton")}
    small = {"epochs": 1, "seeds": 1, "size": 96, "batch_size": 6, "precision": "fp32", "tensorboard": False, "workers": 1}
    summary = finetune(FinetuneConfig(mode="ff", out=str(tmp_path / "ft"), **files, **small))
    made = opened(tmp_path / "ft")
    assert summary["size"] == made.pixels.size == made.meta["image_size"] == 96
    with torch.no_grad():
        assert made.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)

    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3).eval()
    before = vit.encoder.pos_embedding.detach().clone()
    with pytest.raises(UsageError, match="`size=50`: not a multiple of 8"):
        models.resize(vit, 50)
    models.resize(vit, 64)
    assert vit.encoder.pos_embedding.shape == (1, 65, 16) and models.fixed_size(vit) == 64
    assert torch.equal(vit.encoder.pos_embedding[:, 0], before[:, 0]) and vit(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(("arch", "size", "name"), [("vit_b_16", 32, "encoder.pos_embedding"), (f"timm:{TIMM}", 64, "pos_embed")])
def test_transformers_are_built_at_the_size_that_they_are_trained_at(arch, size, name):
    model = models.build(arch, 3, size=size)
    positions = model.get_parameter(name)
    assert models.fixed_size(model) == size and positions.shape[1] == (size // 16) ** 2 + 1
    assert positions.std().item() == pytest.approx(0.02, rel=0.2)  # drawn, and not interpolated from others
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_sizes_that_patches_do_not_cover_are_refused():
    with pytest.raises(UsageError, match="`size=50`: not a multiple of 16, the side of the patches of vit_b_16"):
        models.build("vit_b_16", 3, size=50)
    assert models.fixed_size(models.build("small-4", 3, size=50)) is None


def test_a_transformer_is_pretrained_at_another_size_and_finetuned_at_a_third(tmp_path):
    noisy_colours(tmp_path, "train", (6,) * 3)
    train = str(tmp_path / "train.beton")
    arch = f"timm:{TIMM}"
    for bad in ({"val_size": 96, "val": train}, {"end_size": 96, "end_size_from": 1}):
        with pytest.raises(UsageError, match=r"`size=96`: timm:vit_tiny_patch16_224 .* of 96 x 96 pixels"):
            run(train, tmp_path / "r", arch="timm:vit_tiny_patch16_224", epochs=2, size=64, **bad)
        assert not (tmp_path / "r").exists()
    run(train, tmp_path / "r", arch=arch, epochs=1, size=64, val=train)
    pretrained, meta = checkpoint.load_model(tmp_path / "r")
    assert models.fixed_size(pretrained) == meta["image_size"] == meta["size"] == 64
    assert evaluate(EvaluateConfig(str(tmp_path / "r"), train))["size"] == 64
    finetune(FinetuneConfig(checkpoint=str(tmp_path / "r"), train=train, test=train, size=96, out=str(tmp_path / "lp"), **SMALL))
    probed, meta = checkpoint.load_model(tmp_path / "lp")
    assert models.fixed_size(probed) == meta["image_size"] == meta["size"] == 96
    models.resize(pretrained, 96)
    assert torch.equal(probed.pos_embed, pretrained.pos_embed) and probed.pos_embed.shape[1] == 37
    run(train, tmp_path / "on", arch=arch, epochs=1, size=96, init=str(tmp_path / "r"), lr=1e-9, schedule="constant")
    torch.testing.assert_close(checkpoint.load_model(tmp_path / "on")[0].pos_embed, pretrained.pos_embed, rtol=0, atol=1e-6)


def test_images_resized_otherwise_than_the_weights_are_used_to_are_noted_and_recorded(tmp_path, capsys):
    """The weights want bicubic: whoever looks at images with them says so once. What is trained on ours wants ours."""
    names = [f"class{c}" for c in range(3)]
    snapshot(tmp_path / "s", 3, label_names=names)
    noisy_colours(tmp_path, "train", (4,) * 3)
    weights, train, tuned = str(tmp_path / "s"), str(tmp_path / "train.beton"), str(tmp_path / "ft")
    note = f"note: {weights}: was trained on images resized with bicubic interpolation; here they are resized bilinearly"

    def notes():
        return capsys.readouterr().err.count(note)

    files = {"checkpoint": weights, "train": train, "test": train}
    finetune(FinetuneConfig(out=tuned, size=64, **files, **SMALL))
    assert notes() == 1
    assert evaluate(EvaluateConfig(weights, train))["interpolation"] == "bilinear" and notes() == 1
    predict(PredictConfig(weights, [str(tmp_path / "train")], out=str(tmp_path / "p.csv")))
    assert notes() == 1
    run(train, tmp_path / "r", arch=f"timm:{TIMM}", size=64, epochs=1, init=weights)
    assert notes() == 1
    for made in (tuned, tmp_path / "r"):
        meta = checkpoint.load_model(made)[1]
        assert (meta["interpolation"], meta["start_interpolation"]) == ("bilinear", "bicubic")
        evaluate(EvaluateConfig(str(made), train))
        assert "bicubic" not in capsys.readouterr().err
    assert inspect([tuned]) == 0 and "start_interpolation   bicubic" in capsys.readouterr().err
    export(ExportConfig(weights, str(tmp_path / "n.pt2")))  # looks at no images: whoever runs it resizes as it wants
    extra = {"dp4tl": ""}
    torch.export.load(tmp_path / "n.pt2", extra_files=extra)
    assert '"interpolation": "bicubic"' in extra["dp4tl"] and notes() == 0
