"""What has been done in the running epoch, summed up over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from dp4tl_fast.training import ranks


@dataclass
class Tally:
    """Sums over the part of an epoch that has run; part of the resumable state."""

    samples: int = 0
    batches: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0
    bytes_read: int = 0
    energy_j: float = 0.0  # nan where it is not known
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.double()

    def pooled(self, device: torch.device) -> Tally:
        """Over all ranks: sums of what was done, the longest of the times. Called on every rank."""
        names = sorted(set().union(*ranks.gather_objects(list(self.sums))))  # a rank may have had no batch
        counts = torch.tensor([self.samples, self.bytes_read, self.energy_j], dtype=torch.double, device=device)
        sums = ranks.all_reduce_sum(torch.cat([counts, *(self.sums.get(n, counts.new_zeros(1)).view(1) for n in names)]))
        times = ranks.all_reduce_max(torch.tensor([self.seconds, self.data_wait_s], dtype=torch.double, device=device)).tolist()
        named = dict(zip(names, sums[3:], strict=True))
        return Tally(int(sums[0]), self.batches, times[0], times[1], int(sums[1]), float(sums[2]), named)

    def metrics(self) -> dict[str, float]:
        """Rates and means; waits for the device."""
        n = max(1, self.samples)
        means = {name: float(value) / n for name, value in self.sums.items()}
        return {
            "seconds": self.seconds,
            "samples": self.samples,
            "samples_per_s": self.samples / max(self.seconds, 1e-9),
            "data_wait_s": self.data_wait_s,
            "bytes_read": self.bytes_read,
            **({} if math.isnan(self.energy_j) else {"energy_j": self.energy_j}),
            **means,
        }


def nothing_of(whole: Tally) -> Tally:
    """The share of a rank whose part another rank holds: the clock goes on, the sums begin at zero."""
    zeros = {name: torch.zeros_like(value) for name, value in whole.sums.items()}
    return Tally(0, whole.batches, whole.seconds, whole.data_wait_s, 0, 0.0, zeros)
