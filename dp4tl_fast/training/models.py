"""Networks by name: torchvision's, and small residual networks for 32- and 64-pixel images."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.training import foreign


class SmallResNet(nn.Module):
    """A stem and three residual stages of widths w, 2w, 4w, then global average pooling.

    For images of 32 to 64 pixels: the stem keeps or halves the resolution instead of quartering it. The pooled features
    ``[batch, 4w]`` feed ``fc``, named as in torchvision's ResNets so that heads are handled alike.
    """

    def __init__(self, width: int, num_classes: int, stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = _conv(3, width, stem_stride)
        self.stages = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` float ``[batch, 3, h, w]`` -> logits ``[batch, num_classes]``."""
        features = self.stages(torch.relu(self.stem(images))).mean((2, 3))
        return self.fc(features)


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters: averaged and padded with zero channels where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(c_in, c_out, stride), _conv(c_out, c_out, 1)
        self.stride, self.padding = stride, c_out - c_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)  # rounds up like a padded strided convolution
        return torch.relu(y + F.pad(x, (0, 0, 0, 0, 0, self.padding)) if self.padding else y + x)


def _conv(c_in: int, c_out: int, stride: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out))


class BlurPoolConv2d(nn.Conv2d):
    """A strided convolution of the input blurred by [1, 2, 1] x [1, 2, 1] / 16 (arXiv 1904.11486): shifts alias less.

    Its weights are those of the plain convolution, under the same names.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = x.new_full((3,), 0.25)  # made on the device: a copy from here would wait for it
        taps[1] = 0.5
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
        return super().forward(F.conv2d(x, kernel, padding=1, groups=x.shape[1]))


def add_blur_pool(model: nn.Module) -> None:
    """Blur before every convolution that strides over at least 16 channels, as in FFCV's ResNets; changes ``model``."""
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and module.in_channels >= 16:
            module.__class__ = BlurPoolConv2d  # holds no state of its own


def build(arch: str, num_classes: int, *, blur_pool: bool = False, size: int = 0) -> nn.Module:
    """A freshly initialised network, channels-last.

    Args:
        arch: ``small-W`` (a ``SmallResNet`` of width W at half the input's resolution), ``small-W-full`` (at full
            resolution), any classification model of torchvision, or timm's as ``timm:NAME`` (also ``timm:timm/NAME`` and
            ``hf-hub:timm/NAME``).
        num_classes: Width of the head.
        blur_pool: Blur before strided convolutions; such weights are of no use without it.
        size: Side of the images, for networks whose positions are learned for one size; 0 is the architecture's own.

    Raises:
        UsageError: There is no such architecture, or the size is no multiple of its patches'.
    """
    small = re.fullmatch(r"small-(\d+)(-full)?", arch)
    if small:
        make: Callable[..., nn.Module] = partial(SmallResNet, int(small[1]), stem_stride=1 if small[2] else 2)
        if not 1 <= int(small[1]) <= 1024:
            raise UsageError(f"architecture {arch!r}: the width must be from 1 to 1024")
    elif arch.startswith(("timm:", "hf-hub:timm/")):
        make = partial(_timm, arch.removeprefix("hf-hub:").removeprefix("timm:"), size=size)
    else:
        make = partial(torchvision_model, arch, size=size)
    model = make(num_classes=num_classes)
    if blur_pool:
        add_blur_pool(model)
    return model.to(memory_format=torch.channels_last)


def torchvision_model(arch: str, num_classes: int, size: int = 0) -> nn.Module:
    """A classification model of torchvision, freshly initialised; ``size`` as for ``build``."""
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        raise UsageError(
            f"unknown architecture {arch!r}. Known: small-16, small-32-full, ..., timm:NAME, and torchvision's {', '.join(names)}"
        )
    # Two of them have classifiers on the way, and return three tensors while they train.
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    if size and arch.startswith("vit_"):
        check_patches(size, int(arch.rpartition("_")[2]), arch)
        options["image_size"] = size
    return models.get_model(arch, weights=None, num_classes=num_classes, **options)


def check_patches(size: int, patch: int, name: str) -> None:
    """Refuse images that no whole number of patches covers."""
    if size % patch:
        raise UsageError(f"`size={size}`: not a multiple of {patch}, the side of the patches of {name}")


def _timm(name: str, num_classes: int, size: int) -> nn.Module:
    timm = import_timm(f"architecture timm:{name}")
    name = name.removeprefix("timm/")
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name[:6]}*")[:10])
        raise UsageError(f"unknown architecture timm:{name}" + (f". Similar: {close}" if close else ""))
    model = timm.create_model(name, pretrained=False, num_classes=num_classes)
    if not size or fixed_size(model) in (None, size):
        return model
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, img_size=size)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise _takes_no(size, f"timm:{name}", error) from None


def import_timm(what: str) -> Any:
    """The library, or one line about what needs it."""
    try:
        import timm
    except ImportError:
        raise UsageError(f"{what}: timm is not installed. pip install 'dp4tl_fast[timm]'") from None
    return timm


def preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """What timm says that weights of this architecture usually want, as checkpoints tell it; nothing of other networks."""
    cfg = getattr(model, "pretrained_cfg", None)
    return foreign.timm_meta(cfg) if isinstance(cfg, dict) else {}


def published_by_timm(spec: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of ``timm:NAME``, ``timm:timm/NAME`` or ``hf-hub:ORG/NAME``, downloaded once into the Hub's cache.

    Returns:
        Tensors under timm's names; ``arch``, preprocessing and, where the Hub tells them, ``class_names``.

    Raises:
        UsageError: timm does not know it, or it cannot be downloaded.
    """
    timm = import_timm(spec)
    name = spec.removeprefix("timm:")
    if name.startswith("timm/"):
        name = name.removeprefix("timm/")
    elif name.startswith("hf-hub:timm/"):
        name = name.removeprefix("hf-hub:timm/")
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        raise UsageError(f"{spec}: timm has no network of this name")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the Hub's client raises types of several libraries
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{spec}: its weights are not in the local cache and cannot be downloaded ({reason})") from None
    cfg = model.pretrained_cfg
    meta = {"arch": f"timm:{cfg['architecture']}", "weights": spec, **foreign.timm_meta(cfg)}
    if cfg.get("label_names"):
        meta["class_names"] = [str(label) for label in cfg["label_names"]]
    return model.state_dict(), meta


def published(arch: str, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A torchvision model with published weights, downloaded once into torch's cache.

    Args:
        arch: Classification model of torchvision.
        name: Of the weights, e.g. ``IMAGENET1K_V1`` or ``DEFAULT``.

    Returns:
        The model, and ``arch``, ``num_classes``, ``size``, ``mean``, ``std`` and the ``weights``' full name.
    """
    from torchvision import models

    if arch not in models.list_models(module=models):
        raise UsageError(f"torchvision:{name}: torchvision has no classification model {arch!r}. Name one with `arch`")
    known = models.get_model_weights(arch)
    if name not in known.__members__:
        raise UsageError(f"torchvision:{name}: the weights of {arch} are {', '.join(known.__members__)}")
    weights = known[name]
    try:
        model = models.get_model(arch, weights=weights)
    except OSError as error:  # URLError is one
        raise UsageError(f"torchvision:{name}: the weights of {arch} cannot be downloaded ({error})") from None
    transform = weights.transforms()
    meta = {"arch": arch, "num_classes": len(weights.meta["categories"]), "class_names": list(weights.meta["categories"]),
            "size": transform.crop_size[0], "crop_ratio": transform.crop_size[0] / transform.resize_size[0],
            "interpolation": transform.interpolation.value,
            "mean": tuple(transform.mean), "std": tuple(transform.std), "weights": str(weights)}  # fmt: skip
    return model.to(memory_format=torch.channels_last), meta


def head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the classifier that finetuning replaces: the one that the library names, else the last linear layer.

    Raises:
        UsageError: The network has several, or one that is no linear layer on features ``[batch, d]``.
    """
    name = type(model).__name__
    ask: Any = getattr(model, "get_classifier", None)  # of timm's
    own = ask() if callable(ask) else None
    if isinstance(own, (tuple, list)):
        raise UsageError(
            f"{name} has {len(own)} classifiers and outputs their mean, so none can be replaced alone. Use a network without "
            "distillation"
        )
    if own is not None and not isinstance(own, (nn.Linear, nn.Identity)):
        raise UsageError(f"{name} has a {type(own).__name__} for a classifier, not a linear layer. Use another architecture")
    linear = [(n, module) for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(own, nn.Linear):
        linear = [(n, module) for n, module in linear if module is own]
    if not linear or isinstance(own, nn.Identity):
        raise UsageError(f"{name} has no linear layer to use as a classifier")
    return linear[-1]


def feature_width(model: nn.Module) -> int:
    """Number of penultimate features: the d of ``FeatureTap``."""
    return head(model)[1].in_features


def headless(model: nn.Module) -> nn.Module:
    """``model`` up to its last linear layer, ``[batch, d]``: the same modules and weights, without the classifier's."""
    name, _ = head(model)
    top = _own_children(model)
    parent = top
    *path, last = name.split(".")
    for child in path:
        copied = _own_children(parent.get_submodule(child))
        setattr(parent, child, copied)
        parent = copied
    setattr(parent, last, nn.Identity())
    return top


def _own_children(module: nn.Module) -> nn.Module:
    """The module with a table of children of its own; all else is shared."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def patch_projection(model: nn.Module) -> nn.Module | None:
    """The first layer of a vision transformer of torchvision or timm; ``None`` for other networks."""
    if hasattr(model, "conv_proj") and hasattr(model, "encoder"):
        return model.get_submodule("conv_proj")
    return getattr(getattr(model, "patch_embed", None), "proj", None)


def fixed_size(model: nn.Module) -> int | None:
    """The side of the images that a network's positions are learned for; ``None`` where it has none, or does not say."""
    from torchvision.models.vision_transformer import VisionTransformer

    if isinstance(model, VisionTransformer):
        return model.image_size
    patches = getattr(model, "patch_embed", None)  # timm's
    own = getattr(patches, "img_size", None) if callable(getattr(model, "set_input_size", None)) else None
    return own[0] if own is not None and own[0] == own[1] else None


def size_meta(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint must say of ``fixed_size``, so that the network can be built again."""
    size = fixed_size(model)
    return {} if size is None else {"image_size": size}


def resize(model: nn.Module, size: int) -> None:
    """Make a network whose positions are learned for one size take images of another: they are interpolated. In place.

    Of vision transformers of torchvision, and of timm's networks that say how. Others are left as they are: most take any size.

    Raises:
        UsageError: The size is no multiple of the patches'.
    """
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    name = type(model).__name__
    if fixed_size(model) in (None, size):
        return
    if isinstance(model, VisionTransformer):
        check_patches(size, model.patch_size, name)
        state = interpolate_embeddings(size, model.patch_size, OrderedDict(model.state_dict()))
        positions = state["encoder.pos_embedding"]
        model.encoder.pos_embedding = nn.Parameter(positions.to(model.encoder.pos_embedding))  # type: ignore[assignment]
        model.image_size, model.seq_length = size, positions.shape[1]
        return
    change: Any = model.set_input_size
    try:
        change(img_size=size)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise _takes_no(size, name, error) from None


def _takes_no(size: int, name: str, error: Exception) -> UsageError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"`size={size}`: {name} takes no images of this size ({reason})")


def replace_head(model: nn.Module, num_classes: int) -> nn.Linear:
    """Put a fresh linear classifier in place of the last one, and return it."""
    name, old = head(model)
    new = nn.Linear(old.in_features, num_classes)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return new


def layer_scales(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """For every parameter ``decay`` to the power of its block's distance from the last one, the classifier's (1).

    A block is a module inside a numbered list (``layer1.0``, ``encoder.layers.encoder_layer_3``, ``blocks.5``), or what has
    parameters besides; blocks count in the order in which the network lists them.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = [_block_of(name) for name in names]
    depth = {block: i for i, block in enumerate(dict.fromkeys(blocks))}
    top = len(depth) - 1
    return {p: decay ** (top - depth[block]) for (_, p), block in zip(model.named_parameters(), blocks, strict=True)}


def _block_of(name: str) -> str:
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts[:-1]) if re.search(r"(^|_)\d+$", part)]
    return ".".join(parts[: numbered[0] + 1]) if numbered else parts[0]


class FeatureTap:
    """The penultimate features ``[batch, d]``: what the last linear layer is given. A context manager."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._features: torch.Tensor | None = None
        self._hook = head(model)[1].register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features = inputs[0]

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ``(logits, features)``."""
        logits = self.model(images)
        features, self._features = self._features, None
        if features is None:
            raise UsageError(
                f"{type(self.model).__name__} does not run its last linear layer; its features cannot be taken"
            )
        return logits, features.flatten(1)

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()
