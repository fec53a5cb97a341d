"""GraNd against one backward pass for every image."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dp4tl_fast.mapping import grand as module
from dp4tl_fast.mapping.grand import decomposes, grand, grand_by_vmap
from dp4tl_fast.training import models


def network(arch, classes=5):
    """In eval mode, with statistics and weights of normalisation that are not the initial ones."""
    torch.manual_seed(0)
    model = arch() if callable(arch) else models.build(arch, classes)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return model.eval()


def one_by_one(model, images, y):
    """In float64: norms of autograd's own gradients."""
    model, norms = copy.deepcopy(model).double(), []
    for image, label in zip(images.double(), y, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()))
    return norms


def batch(n, side):
    return torch.randn(n, 3, side, side), torch.randint(0, 5, (n,))


# Convolutions of every kind: grouped and depthwise, dilated, with bias, oblong, and maps so small that the norm is taken
# without the gradient; ReLUs that overwrite what a hook has seen (torchvision's).
ARCHITECTURES = {"small-4": 12, "resnet18": 33, "resnext50_32x4d": 32, "mobilenet_v3_small": 40, "vgg11_bn": 32}


def odd():
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1)), nn.ReLU(inplace=True), nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 2, stride=3, groups=4, bias=False), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 5, bias=False),
    )  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 4, 32])
@pytest.mark.parametrize("arch", [pytest.param(a, marks=[pytest.mark.slow] * (a == "vgg11_bn")) for a in [*ARCHITECTURES, odd]])
def test_norm_of_each_images_gradient(arch, chunk, monkeypatch):
    model, (images, y) = network(arch), batch(5, ARCHITECTURES.get(arch, 17))
    monkeypatch.setattr(module, "grand_by_vmap", None)  # it must do without
    # Another order of float32 sums, through up to 50 layers.
    np.testing.assert_allclose(grand(model, images, y, chunk), one_by_one(model, images, y), rtol=1e-4)
    assert all(p.grad is None for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())


class Twice(nn.Module):
    """One layer used twice: its two gradients add up before the norm is taken."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(self.conv(self.conv(x).tanh()).mean((2, 3)))


def shared():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    return model


def positions():
    """A linear layer at every position."""
    return nn.Sequential(nn.Flatten(2), nn.Linear(36, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5))


def normalised():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def reflecting():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("arch", [Twice, shared, positions, normalised, reflecting])
def test_other_networks_go_by_the_definition(arch, monkeypatch):
    model, (images, y), calls = network(arch), batch(6, 6), []
    monkeypatch.setattr(module, "grand_by_vmap", lambda *a: calls.append(a) or grand_by_vmap(*a))
    np.testing.assert_allclose(grand(model, images, y, 4), one_by_one(model, images, y), rtol=1e-4)
    assert len(calls) == 2 and decomposes(model) == (arch in (Twice, positions))  # those are seen while they run


def test_no_images():
    assert grand(network("small-4"), *batch(0, 8)).shape == (0,)
