"""GraNd (arXiv 2107.07075): the norm of the loss gradient of a single image.

    g(x, y) = | d CE(f_w(x), y) / d w |

over all weights w, in eval mode: batch normalisation uses its running statistics, so that an image's gradient does not
depend on the rest of its batch. ``grand_by_vmap`` computes this definition with torch.func. ``grand`` computes the same
from one backward pass over the whole batch, without storing any image's gradient: in each layer it is a product of the
layer's input and the gradient of the loss with respect to its output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def grand(model: nn.Module, images: torch.Tensor, y: torch.Tensor, chunk: int = 32) -> np.ndarray:
    """Norm of every image's gradient. Hard images are kept first.

    Args:
        model: In eval mode: images ``[batch, 3, h, w]`` -> logits ``[batch, classes]``.
        images: float ``[n, 3, h, w]``.
        y: int64 ``[n]``.
        chunk: Images per backward pass.

    Returns:
        float64 ``[n]``. Networks that have weights in other layers than linear, convolution and batch normalisation (see
        ``decomposes``) use ``grand_by_vmap``, which is several times slower.
    """
    norms = _norms_by_layer if decomposes(model) else grand_by_vmap
    parts = [norms(model, xs, ys) for xs, ys in zip(images.split(chunk), y.split(chunk), strict=True)]
    return torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)


def grand_by_vmap(model: nn.Module, images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The definition; holds the gradients of all ``images`` in memory. float32 ``[n]``."""
    from torch.func import functional_call, grad, vmap

    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(w: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, (w, buffers), (image[None],))
        return F.cross_entropy(logits, label[None])

    def squared_norm(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.stack([g.square().sum() for g in grad(loss)(weights, image, label).values()]).sum()

    norms: Callable[..., torch.Tensor] = vmap(squared_norm)
    return norms(images, y).sqrt()


# -- by layer ---------------------------------------------------------------------------------------------------------
# n images, i input and o output channels, p positions of an output map. a is a layer's input, e the gradient of the loss
# with respect to its output; all in float32.


def decomposes(model: nn.Module) -> bool:
    """Whether every weight belongs to exactly one layer, a plain linear, convolution or batch normalisation layer."""
    owners = _owners(model)
    owned = [p for m in owners for p in m.parameters(recurse=False)]
    apart = len({id(p) for p in owned}) == len(owned) and all(p.requires_grad for p in owned)
    return apart and all(type(m) in LAYERS and _plain(m) for m in owners)


def _owners(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]


def _plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return not isinstance(layer, nn.BatchNorm2d) or (layer.running_mean is not None and not layer.training)


@dataclass
class _Sums:
    """Squared norms so far, ``[n]``, and the layers that have added theirs."""

    squares: torch.Tensor
    seen: set[nn.Module] = field(default_factory=set)
    irregular: bool = False  # a layer ran twice, or on other than one row per image

    def add(self, layer: nn.Module, a: torch.Tensor, e: torch.Tensor) -> None:
        if layer in self.seen or len(e) != len(self.squares) or (isinstance(layer, nn.Linear) and a.ndim != 2):
            self.irregular = True
            return
        self.seen.add(layer)
        self.squares += LAYERS[type(layer)](layer, a, e)


def _norms_by_layer(model: nn.Module, images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    sums = _Sums(torch.zeros(len(images), device=images.device))

    def watch(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        a = inputs[0].detach()
        output.register_hook(lambda e: sums.add(layer, a, e))  # also if a ReLU overwrites the output afterwards

    owners = _owners(model)
    handles = [m.register_forward_hook(watch) for m in owners]
    try:
        with torch.enable_grad():
            x = images.detach().requires_grad_()  # the only gradient requested, so that none of a weight is computed
            torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    finally:
        for handle in handles:
            handle.remove()
    if sums.irregular or len(sums.seen) < len(owners):  # a layer that ran twice (its gradients add up), or that did not run
        return grand_by_vmap(model, images, y)
    return sums.squares.sqrt()


def _linear(layer: nn.Linear, a: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """The weight's gradient is e a^T, and its norm |e| |a|. ``a`` ``[n, i]``, ``e`` ``[n, o]`` -> squares ``[n]``."""
    return e.square().sum(1) * (a.square().sum(1) + (layer.bias is not None))


def _convolution(layer: nn.Conv2d, a: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """At kernel offset k the gradient is G_k = E^T A_k; A_k ``[p, i]`` are the inputs that k reads at each position.

    |G_k|^2 is the sum of squares of G_k ``[o, i]``; on small maps it is cheaper as the inner product of E E^T and
    A_k A_k^T, both ``[p, p]``.
    """
    groups, (n, channels, height, width) = layer.groups, e.shape
    p, i, o = height * width, a.shape[1] // groups, channels // groups
    rows = e.permute(0, 2, 3, 1).reshape(n, p, groups, o).transpose(1, 2).reshape(n * groups, p, o)
    assert not isinstance(layer.padding, str)  # checked by decomposes
    (pad_y, pad_x), (step_y, step_x), (gap_y, gap_x) = layer.padding, layer.stride, layer.dilation
    seen = F.pad(a, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    places = layer.kernel_size[0] * layer.kernel_size[1]
    gram = rows @ rows.mT if p * (places * i + o) < places * i * o else None  # multiplications either way
    total = torch.zeros(n * groups, device=a.device)
    for ky in range(0, layer.kernel_size[0] * gap_y, gap_y):
        for kx in range(0, layer.kernel_size[1] * gap_x, gap_x):
            part = seen[:, ky : ky + height * step_y : step_y, kx : kx + width * step_x : step_x][:, :height, :width]
            columns = part.reshape(n, p, groups, i).transpose(1, 2).reshape(n * groups, p, i)
            if gram is None:
                total += (rows.mT @ columns).square().sum((1, 2))
            else:
                total += ((columns @ columns.mT) * gram).sum((1, 2))
    squares = total.clamp(min=0).view(n, groups).sum(1)
    return squares if layer.bias is None else squares + e.sum((2, 3)).square().sum(1)


def _batch_norm(layer: nn.BatchNorm2d, a: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """In eval mode an affine map per channel: the gradients are the sums over positions of e and of e (a - mean) / std."""
    assert layer.running_mean is not None and layer.running_var is not None  # checked by decomposes
    scale = (e * (a - layer.running_mean[:, None, None])).sum((2, 3)) * (layer.running_var + layer.eps).rsqrt()
    return e.sum((2, 3)).square().sum(1) + scale.square().sum(1)


LAYERS: dict[type[nn.Module], Callable[..., torch.Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
}
