"""The one loop behind ``linear_label_counts`` and ``nearest_centroid``: argmax over k of x · w[k] + offset[k].

Logits are x · w + bias. The nearest centroid c has the smallest ‖c‖² − 2 x · c, which is the largest x · c − ‖c‖²/2.
Products are taken in the dtype of x and summed in float32; the matrix of scores is never held whole in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels.dispatch import choose, load, require_groups, require_matrix

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Winners:
    index: torch.Tensor  # int64 [rows], -1 where a score is NaN
    value: torch.Tensor  # float32 [rows], the winning score
    counts: torch.Tensor  # int64 [groups, columns of scores]; rows with a NaN do not count


def linear_argmax(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    group: torch.Tensor | None,
    groups: int | None,
    implementation: str,
    names: tuple[str, str] = ("x", "w"),
) -> Winners:
    """The winner of each row of x [rows, depth] among w [columns, depth] with offset [columns], and their histogram.

    ``w`` is rounded to the dtype of ``x``, ``offset`` to float32. The lowest column wins ties. Results are on the
    device of ``w``; ``x`` may be in host memory and is then streamed to that device. ``names`` are what errors call x
    and w.
    """
    require_matrix(names[0], x)
    require_matrix(names[1], w)
    if x.shape[1] != w.shape[1]:
        raise UsageError(f"{names[0]} have {x.shape[1]} columns, {names[1]} {w.shape[1]}: they must be equal")
    if len(w) == 0:
        raise UsageError(f"{names[1]} has no rows: at least one is needed")
    if x.device != w.device and x.device.type != "cpu":
        raise UsageError(f"{names[0]} are on {x.device}, {names[1]} on {w.device}: put both on one device")
    chosen = choose(implementation, w.device)
    x, w, offset = x.detach(), w.detach().to(x.dtype), offset.detach().float().contiguous()
    ids, groups = require_groups(group, groups, len(x), w.device)
    return Winners(*load("linear_argmax", chosen)(x, w, offset, ids, groups))
