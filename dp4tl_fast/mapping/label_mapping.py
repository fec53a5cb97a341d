"""Label mapping (LM), for supervised pretraining: arXiv 2310.08782, section 3.

    s(c) = | { t in target training set : argmax_j f(t)_j = c } |

for a surrogate f trained on the source; c is a source class. Target labels are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dp4tl_fast.kernels import label_counts, linear_label_counts


@dataclass(frozen=True)
class LabelMapping:
    """``votes`` s(c): int64 ``[num_classes]``. ``probability``: float64 ``[num_classes]``, the mean of softmax f(t).

    Most classes get no vote. The paper leaves their order undefined; here the mean probability ranks equal votes.
    """

    votes: np.ndarray
    probability: np.ndarray


@torch.inference_mode()
def label_mapping(
    f: Callable[[torch.Tensor], torch.Tensor], images: Iterable[torch.Tensor], num_classes: int
) -> LabelMapping:
    """Count how many target images the surrogate classifies as each source class.

    One pass over the logits gives both results. The votes alone would not need the logits (``votes_by_target_class``),
    but a selection records the mean probability of every class, so that it can be cut again at any number of classes, and
    a softmax needs all logits of an image.

    Args:
        f: The surrogate in eval mode, images -> logits ``[batch, num_classes]``; or its classifier, for features.
        images: Batches of target images, or of their features.
        num_classes: Classes of the source.
    """
    votes, probability, n = None, None, 0
    for t in images:
        logits = f(t).float()
        counts = label_counts(logits, num_classes)
        mass = logits.softmax(1).sum(0, dtype=torch.float64)
        votes = counts if votes is None else votes + counts
        probability = mass if probability is None else probability + mass
        n += len(t)
    if votes is None or probability is None:
        return LabelMapping(np.zeros(num_classes, np.int64), np.zeros(num_classes))
    return LabelMapping(votes.cpu().numpy(), (probability / n).cpu().numpy())


def votes_by_target_class(t: torch.Tensor, ty: torch.Tensor, classifier: nn.Linear) -> np.ndarray:
    """The votes s(c) of each target class separately, to report what a selection keeps of them.

    Args:
        t: Target features ``[m, d]``.
        ty: Their labels, int64 ``[m]``.
        classifier: The surrogate's last layer: f(t) = W g(t) + b for features g.

    Returns:
        int64 ``[target classes, num_classes]``, straight from the features; the logits are never stored.
    """
    return linear_label_counts(t, classifier.weight, classifier.bias, ty).cpu().numpy()
