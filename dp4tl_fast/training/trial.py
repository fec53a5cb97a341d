"""Two images through a network, forward and back, before anything is written: what cannot work is told at the start."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dp4tl_fast.common.errors import UsageError


def try_out(
    network: nn.Module, arch: str, size: int, device: torch.device, *, least: int = 2, head: nn.Module | None = None
) -> None:
    """One training step's passes over grey images of ``size`` pixels with a copy of ``network``, which stays as it is.

    Args:
        least: Images of the smallest part of a batch that there will be.
        head: What else is trained, on the network's features ``[b, d]``: an objective.

    Raises:
        UsageError: The architecture takes no images of this size, or a batch of one where it needs two.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        trained = copy.deepcopy(network).train()
        _passes(trained, arch, size, device, max(2, least))
        on_features = [] if head is None else [m for m in head.modules() if type(m) is nn.BatchNorm1d]
        if least == 1 and (on_features or _needs_two(trained, size, device)):
            whose = "the objective" if on_features else arch
            raise UsageError(
                f"`batch_size`: leaves a batch, or a part of one, of a single image, which the batch normalisation of {whose} "
                "cannot be trained on. Use a larger `batch_size`, a smaller `accumulate` or fewer processes"
            )


def _passes(network: nn.Module, arch: str, size: int, device: torch.device, n: int) -> None:
    try:
        network(torch.zeros(n, 3, size, size, device=device)).float().sum().backward()
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _refusal(arch, size, "cannot be trained on images", error) from None


def _needs_two(network: nn.Module, size: int, device: torch.device) -> bool:
    try:
        network(torch.zeros(1, 3, size, size, device=device))
    except ValueError as error:  # "Expected more than 1 value per channel when training"
        return "more than 1 value" in str(error)
    return False


@torch.inference_mode()
def try_forward(network: nn.Module, arch: str, size: int, device: torch.device) -> None:
    """A pass over two grey images in eval mode.

    Raises:
        UsageError: The architecture takes no images of this size.
    """
    try:
        network.eval()(torch.zeros(2, 3, size, size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _refusal(arch, size, "takes no images", error) from None


def _refusal(arch: str, size: int, what: str, error: Exception) -> UsageError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"`size={size}`: {arch} {what} of {size} x {size} pixels ({reason})")
