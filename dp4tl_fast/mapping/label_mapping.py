"""Label mapping (LM), for supervised pretraining: arXiv 2310.08782, section 3.

    s(c) = | { x in target training set : argmax f(x) = c } |

for a surrogate f trained on the source. Target labels are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from dp4tl_fast.kernels import label_counts


@dataclass(frozen=True)
class LabelMapping:
    """``votes``: int64 ``[num_classes]``. ``probability``: float64 ``[num_classes]``, the mean of softmax f(x).

    Most classes get no vote. The paper leaves their order undefined; here the mean probability ranks equal votes.
    """

    votes: np.ndarray
    probability: np.ndarray


@torch.inference_mode()
def label_mapping(
    f: Callable[[torch.Tensor], torch.Tensor], images: Iterable[torch.Tensor], num_classes: int
) -> LabelMapping:
    """Count how many target images the surrogate puts into each source class.

    Args:
        f: Surrogate in eval mode: images ``[batch, 3, h, w]`` -> logits ``[batch, num_classes]``.
        images: Batches of target images, as f wants them.
    """
    votes, probability, n = None, None, 0
    for x in images:
        logits = f(x).float()
        counts = label_counts(logits, num_classes)
        mass = logits.softmax(1).sum(0, dtype=torch.float64)
        votes = counts if votes is None else votes + counts
        probability = mass if probability is None else probability + mass
        n += len(x)
    if votes is None or probability is None:
        return LabelMapping(np.zeros(num_classes, np.int64), np.zeros(num_classes))
    return LabelMapping(votes.cpu().numpy(), (probability / n).cpu().numpy())
