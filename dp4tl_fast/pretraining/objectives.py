"""What can be learned, by name: one record of facts per objective. The modules themselves are in ``training``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.pretraining.config import PretrainConfig
    from dp4tl_fast.training.preprocessing import Preprocessing
    from dp4tl_fast.training.views import Colours


@dataclass
class Given:
    """What an objective may be made from.

    Attributes:
        network: What is trained; without its classifier for objectives that do not classify.
        width: Of the network's features.
        pixels: What the network wants to see.
        renumber: Class id -> output of the network, int64 ``[num_classes]``, where the head has only the kept classes.
    """

    config: PretrainConfig
    network: nn.Module
    width: int
    source: Beton
    renumber: torch.Tensor | None
    total_steps: int
    pixels: Preprocessing


@dataclass(frozen=True)
class Facts:
    """One objective.

    Attributes:
        make: The objective's module, see ``training.state.Objective``.
        views: Independently augmented views of each image.
        classifies: The network's own logits are trained: they can be validated (by the module's ``score``), and vote.
        colours: Gives the colour augmentation of each view.
    """

    make: Callable[[Given], Any]
    views: int = 1
    classifies: bool = True
    colours: Callable[[], tuple[Colours, ...]] | None = None


def _supervised(given: Given) -> Any:
    from dp4tl_fast.training.forgetting import Forgetting
    from dp4tl_fast.training.ranks import world_size
    from dp4tl_fast.training.supervised import Supervised

    plain = Supervised(given.config.label_smoothing, given.renumber)
    if given.config.dynamic == "infobatch":
        from dp4tl_fast.training.infobatch import InfoBatch

        return InfoBatch(plain, given.source.index, given.config.dynamic_skip, given.config.seed)
    if not given.config.forgetting:
        return plain
    if world_size() > 1:
        raise UsageError("`forgetting`: counts in one process only. Run it without torchrun")
    return Forgetting(plain, given.source.index)


def _adversarial(given: Given) -> Any:
    from dp4tl_fast.training.adversarial import Adversarial

    config, attack = given.config, given.config.adv
    return Adversarial(
        eps=attack.eps / 255, steps=attack.steps, norm=attack.norm, mean=given.pixels.mean, std=given.pixels.std,
        label_smoothing=config.label_smoothing, renumber=given.renumber,
    )  # fmt: skip


def _moco(given: Given) -> Any:
    from dp4tl_fast.training.moco import MoCo

    moco = given.config.moco
    return MoCo(given.network, given.width, queue=moco.queue, momentum=moco.momentum, temperature=moco.temperature)


def _moco_v3(given: Given) -> Any:
    from dp4tl_fast.training import models
    from dp4tl_fast.training.moco_v3 import MoCoV3

    moco, patches = given.config.moco, models.patch_projection(given.network)
    if patches is not None:
        patches.requires_grad_(False)  # random and fixed: trained, it makes ViTs unstable (section 4.2 of the paper)
    return MoCoV3(
        given.network, given.width, total_steps=given.total_steps, momentum=moco.momentum, temperature=moco.temperature,
        layers=2 if patches is None else 3,
    )  # fmt: skip


def _moco_v2_colours() -> tuple[Colours, ...]:
    from dp4tl_fast.training.views import MOCO_V2

    return MOCO_V2


def _moco_v3_colours() -> tuple[Colours, ...]:
    from dp4tl_fast.training.views import MOCO_V3

    return MOCO_V3


OBJECTIVES: dict[str, Facts] = {
    "supervised": Facts(_supervised),
    "moco": Facts(_moco, views=2, classifies=False, colours=_moco_v2_colours),
    "moco_v3": Facts(_moco_v3, views=2, classifies=False, colours=_moco_v3_colours),
    "adversarial": Facts(_adversarial),
}
