"""Settings of ``evaluate``, ``predict`` and ``export``: the flags of these commands, the keys of their YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.remote.cache import CacheConfig
from dp4tl_fast.runs.bad_records import BadRecordsConfig
from dp4tl_fast.training.placement import Placement

TTA = ("none", "flip")
NORMS = ("linf", "l2")
TABLES = (".csv", ".jsonl", ".parquet")
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2", "torchvision": ".pth"}  # form -> how its files end


@dataclass(kw_only=True)
class NetworkConfig:
    """A trained network.

    Args:
        checkpoint: Run folder (uses its last checkpoint), checkpoint folder (``RUN/checkpoint/best``) or weights file; or published
            weights: torchvision:NAME (with --arch), timm:NAME or hf-hub:ORG/NAME.
        arch: Architecture, if the checkpoint does not name it.
        size: Side of the images, in pixels; 0 uses the checkpoint's.
        mean: Mean of each channel for normalisation, three values, instead of the checkpoint's.
        std: Standard deviation of each channel, likewise.
    """

    checkpoint: str = field(kw_only=False)
    arch: str | None = None
    size: int = 0
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        require(self.size >= 0, "size", self.size, "at least 0")


@dataclass(kw_only=True)
class PassConfig(NetworkConfig, Placement):
    """A network that looks at images.

    Args:
        tta: Test-time augmentation: none or flip, which averages the probabilities of each image and its mirror image.
        batch_size: Images per forward pass (with `evaluate` under torchrun, over all processes).
    """

    tta: str = "none"
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        Placement.__post_init__(self)
        require_one_of("tta", self.tta, TTA)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


@dataclass(kw_only=True)
class EvaluateConfig(PassConfig, BadRecordsConfig, CacheConfig):
    """What to measure, on which images.

    Args:
        data: .beton to evaluate on, or its URL (s3://, gs://, az://, https://). Its classes are matched with the network's by name,
            or by number if either has no names.
        out: Folder for evaluation.json, per_class.csv and confusion.csv (a row per true class, a column per predicted class).
        groups: CSV with the columns index and group for the records: reports the accuracy of each group and of the worst one.
        known_only: Leave out images of classes that the network does not know, instead of stopping with an error.
        attack_eps: Also measure robust accuracy under projected gradient descent (PGD) with this radius, in 1/255 of the pixel
            range; 0 turns the attack off; -1 uses the radius that the checkpoint was trained against, and is off if it was trained
            without an attack.
        attack_steps: Steps of the attack.
        attack_norm: Norm of the attack: linf or l2; the default is the checkpoint's, else linf.
        seed: Random seed for the attack's starting point.
    """

    data: str = field(kw_only=False)
    out: str = ""
    groups: str = ""
    known_only: bool = False
    attack_eps: float = -1.0
    attack_steps: int = 20
    attack_norm: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        BadRecordsConfig.__post_init__(self)
        CacheConfig.__post_init__(self)
        require(self.attack_steps >= 1, "attack_steps", self.attack_steps, "at least 1")
        require(self.attack_eps >= 0 or self.attack_eps == -1, "attack_eps", self.attack_eps, "at least 0, or -1")
        if self.attack_norm:
            require_one_of("attack_norm", self.attack_norm, NORMS)


@dataclass(kw_only=True)
class PredictConfig(PassConfig):
    """What to look at, and what to write of it.

    Args:
        photos: Image files, folders of them (flat or nested), tars, .beton files, or - to read a list of files from stdin.
        out: Table to write; the ending chooses the format: .csv, .jsonl or .parquet.
        top: Number of most likely classes to list for each image.
        probabilities: Also write the probability of every class.
        features: Write the penultimate features instead of classes; works with any network, also one trained without labels.
        exif_orientation: ignore (the default, as in convert) or apply the EXIF orientation.
    """

    photos: list[str] = field(kw_only=False)
    out: str = "predictions.csv"
    top: int = 5
    probabilities: bool = False
    features: bool = False
    exif_orientation: str = "ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top >= 1, "top", self.top, "at least 1")
        require_one_of("exif_orientation", self.exif_orientation, ("ignore", "apply"))
        if Path(self.out).suffix.lower() not in TABLES:
            raise UsageError(f"`out={self.out}`: must end in one of {', '.join(TABLES)}")
        if self.features and (self.probabilities or self.tta != "none"):
            raise UsageError("`features`: replaces the classes in the output. Drop `probabilities` and `tta`")
        if self.betons and len(self.betons) < len(self.photos):
            raise UsageError("`photos`: .beton files and other files in one call. Give the .beton files in a separate call")

    @property
    def betons(self) -> list[str]:
        """The .beton files among ``photos``."""
        return [place for place in self.photos if place.endswith(".beton")]


@dataclass(kw_only=True)
class ExportConfig(NetworkConfig):
    """What to write.

    Args:
        out: File to write.
        to: onnx, torch-export or torchvision; by default chosen by the ending of OUT (.onnx, .pt2, .pth).
    """

    out: str = field(kw_only=False)
    to: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.to = self.to or {ending: name for name, ending in ENDINGS.items()}.get(Path(self.out).suffix.lower(), "")
        if not self.to:
            raise UsageError(f"`out={self.out}`: its ending names no format. Give `to`, one of {', '.join(ENDINGS)}")
        require_one_of("to", self.to, ENDINGS)
