"""Every kernel against its reference on random inputs. Nothing is timed where these fail.

Small integers, whose sums are exact in every dtype, must give the reference's results to the bit; of random floats a winner may be
another column only where it is a near tie.
"""

from __future__ import annotations

import sys

import torch

from dp4tl_fast.kernels import label_counts, linear_label_counts, nearest_centroid
from dp4tl_fast.kernels.cluster_sums import cluster_sums
from dp4tl_fast.kernels.cluster_sums.reference import cluster_sums as sums_reference
from dp4tl_fast.kernels.label_counts.reference import label_counts as label_counts_reference
from dp4tl_fast.kernels.linear_label_counts.reference import linear_label_counts as linear_reference
from dp4tl_fast.kernels.nearest_centroid.reference import nearest_centroid as nearest_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = (700, 600, 300)  # rows, columns, depth


def check_kernels(device: str, implementation: str = "auto", cases: int = 60, most: tuple[int, int, int] = MOST) -> int:
    """Raise SystemExit, naming kernel, shape and dtype, unless every kernel equals its reference. Returns the cases.

    Args:
        device: Where the inputs are.
        implementation: As for the kernels.
        most: Largest rows, columns and depth to draw.
    """
    generator = torch.Generator().manual_seed(0)
    for case in range(cases):
        rows, k, depth, groups = (int(torch.randint(1, high, (), generator=generator)) for high in (*most, 5))
        dtype = DTYPES[case % 3]
        group = torch.randint(0, groups, (rows,), generator=generator).to(device)

        def integers(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randint(-3, 4, shape, generator=generator).to(dtype).to(device)

        agree = _exact(integers(rows, depth), integers(k, depth), integers(rows, k), group, groups, implementation)
        x, w = (torch.randn(n, depth, generator=generator).to(dtype).to(device) for n in (rows, k))
        agree["nearest_centroid of floats"] = _near_ties_alone(x, w, implementation)
        if wrong := [name for name, right in agree.items() if not right]:
            raise SystemExit(f"{wrong} differ from the reference on {device}: {rows=} {k=} {depth=} {dtype=} {groups=}")
    print(f"all kernels equal their references on {device} in {cases} random shapes", file=sys.stderr)
    return cases


def _exact(
    x: torch.Tensor, w: torch.Tensor, logits: torch.Tensor, group: torch.Tensor, groups: int, implementation: str
) -> dict[str, bool]:
    """Whether each kernel equals its reference on integers x [rows, depth], w [k, depth] and logits [rows, k]."""
    k = len(w)
    nearest = nearest_centroid(x, w, group, True, True, groups=groups, implementation=implementation)
    index, distances = nearest_reference(x, w)
    counts = torch.bincount(group * k + index, minlength=groups * k).view(groups, k)
    holed = logits.masked_fill(logits == 3, torch.nan)
    every_second = logits[::2].T.contiguous().T  # columns first in memory
    counted = label_counts(logits, k, group, groups=groups, implementation=implementation)
    counted_holed = label_counts(holed, k, nan="skip", implementation=implementation)
    counted_strided = label_counts(every_second, k, implementation=implementation)
    return {
        "label_counts": torch.equal(counted, label_counts_reference(logits, group, groups)[0]),
        "label_counts with NaNs": torch.equal(counted_holed, label_counts_reference(holed, None, 1)[0][0]),
        "label_counts of strided logits": torch.equal(counted_strided, label_counts_reference(every_second, None, 1)[0][0]),
        "linear_label_counts": torch.equal(
            linear_label_counts(x, w, None, group, groups=groups, implementation=implementation),
            linear_reference(x, w, None, group, groups)[0],
        ),
        "nearest_centroid": torch.equal(nearest.index, index)
        and nearest.counts is not None
        and torch.equal(nearest.counts, counts)
        and nearest.distances is not None
        and torch.equal(nearest.distances, distances.float()),
        "cluster_sums": torch.equal(cluster_sums(x, index, k, implementation), sums_reference(x, index, k)),
    }


def _near_ties_alone(x: torch.Tensor, w: torch.Tensor, implementation: str) -> bool:
    """Whether every row's winner is behind the exact one by no more than rounding explains."""
    index = nearest_centroid(x, w, implementation=implementation).index
    half_norms = w.double().square().sum(dim=1) / 2
    scores = x.double() @ w.double().T - half_norms
    behind = scores.max(dim=1).values - scores.gather(1, index[:, None])[:, 0]
    return bool((behind <= 2 * dot_error(x, w, half_norms)).all())


def dot_error(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Bound [rows] on the error of float32 scores x · w[k] + offset[k], whatever the order of summation.

    gamma_n * sum |x_i w_i| with gamma_n = n u / (1 - n u), u = 2^-24 (Higham, Accuracy and Stability, ch. 3). Products
    of 16-bit values are exact in float32: the bound is the same for every dtype; 3xTF32 drops the product of the low
    parts, 2^-22 of each product. The offset may itself be a sum of as many terms (a norm).
    """
    terms = x.shape[1] + 2
    u = 2.0**-24
    gamma = terms * u / (1 - terms * u) + 2.0**-22
    largest = (x.double().abs() @ w.double().abs().T + offset.double().abs()).max(dim=1).values
    return gamma * largest
