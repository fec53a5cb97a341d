"""From what loaders call a record by to its number in the source."""

from __future__ import annotations

import numpy as np
import torch

from dp4tl_fast.common.errors import UsageError


class ByIndex:
    """The record numbers of samples, from their ``index`` fields.

    Args:
        index: The source's ``index`` field, int64 ``[n]``.
        wanted_by: The parameter that needs to tell records apart, for the message.

    Raises:
        UsageError: Two records have the same.
    """

    def __init__(self, index: np.ndarray, wanted_by: str) -> None:
        self._order = np.argsort(index, kind="stable")
        self._sorted = index[self._order]
        if (np.diff(self._sorted) == 0).any():
            raise UsageError(f"`{wanted_by}`: several records have the same `index` field and cannot be told apart")

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        """int64 ``[batch]`` on the CPU -> int64 ``[batch]``."""
        return torch.from_numpy(self._order[np.searchsorted(self._sorted, index.numpy())])
