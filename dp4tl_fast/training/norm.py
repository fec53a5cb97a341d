"""Batch normalisation over several ranks.

Without ``synchronise`` every rank normalises with its own images, as is usual from about 32 images per rank; the running
statistics are then averaged over ranks after every step (``running``), so that all ranks hold the same network. With it, the
statistics of a step are those of the global batch: what one process would compute.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dp4tl_fast.training.ranks import world_size


class GlobalBatchNorm(_BatchNorm):
    """``torch.nn.SyncBatchNorm``, which exists for GPUs only, for any device. Inputs ``[batch, channels, ...]``."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass  # any number of dimensions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        over = [d for d in range(x.ndim) if d != 1]
        wide = x.double()  # E[x^2] - E[x]^2 cancels
        count = wide.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([wide.sum(over), wide.square().sum(over), count]))
        n = sums[-1].detach()
        mean, square = (sums[:-1] / n).chunk(2)
        variance = square - mean.square()
        self._follow(mean.detach(), (variance * n / (n - 1)).detach())
        shape = [1, -1] + [1] * (x.ndim - 2)
        y = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        y = y.to(x.dtype)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with every batch normalisation over all ranks; names and weights stay. Alone it is ``model``."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        if isinstance(module, _BatchNorm):  # the class holds no state of its own: changing it keeps parameters and hooks
            module.__class__ = GlobalBatchNorm
    return model


def running(module: nn.Module) -> list[torch.Tensor]:
    """Running statistics that differ between ranks until they are averaged."""
    own = [m for m in module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, (GlobalBatchNorm, nn.SyncBatchNorm))]
    return [s for m in own for s in (m.running_mean, m.running_var) if s is not None]
