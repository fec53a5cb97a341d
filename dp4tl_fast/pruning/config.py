"""Settings of pruning: the flags of ``dp4tl-fast prune``, the keys of its YAML files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.keep import Keep
from dp4tl_fast.remote.cache import CacheConfig
from dp4tl_fast.runs.bad_records import BadRecordsConfig
from dp4tl_fast.training.placement import Placement

MERGES = ("sum", "union", "turns")
SAMPLES, SHARES = ("whole", "weighted"), ("votes", "equal")


@dataclass(kw_only=True)
class PruneConfig(Placement, BadRecordsConfig, CacheConfig):
    """What to choose from, for what, and how.

    Args:
        source: Source .beton, or its URL (s3://, gs://, az://, https://).
        out: Selection file to write (.json).
        keep: How much to keep: a fraction of the classes (0.4) or a number of classes (400); samples:0.4 for the fewest classes
            that hold at least this share of the samples; or auto for half, a quarter, an eighth ... of the samples, depending on
            how broad the target is. With --groups kmeans it counts clusters, with methods that score records it counts records.
            Several values, as in 0.5,0.25,0.125, write one selection each, with the value in its name: SEL.0.25.json.
        budget: Instead of --keep: keep the most classes whose samples cost at most this share of a full epoch (0.4). With --keep
            auto: the length of the pretraining, in epochs of the full source (8epochs), images (500000images) or hours (2hours,
            with --images-per-s): one epoch of what is kept must fit in it, a long pretraining keeps more, and `pretrain` takes its
            number of epochs from the selection.
        images_per_s: Speed of the pretraining in images per second, to convert a --budget in hours.
        sample: whole (every epoch uses each kept record once) or weighted (soft mapping: every epoch draws as many records as
            --keep would keep, from every class in proportion to its votes; from large classes, different ones in every epoch).
        shares: With --sample weighted: votes (draw in proportion to the votes) or equal (draw all records of what --keep keeps
            equally often).
        smooth: With --sample weighted: fraction, 0 to 1, of the shares that is spread over all classes in proportion to their size;
            1 draws a new random subset of the source in every epoch.
        per_class: Maximum number of records of a class (or cluster) per epoch, different ones in every epoch; 0 is no limit. With
            --sample weighted, the other classes get the records beyond this limit.
        target: Target *training* .beton, or its URL; repeat the flag for several targets.
        merge: How several targets become one selection: sum (add their scores), union (keep what any target's own selection
            keeps; refused if that exceeds --budget) or turns (the targets take turns choosing their best class). The selection for
            each target is also written, beside --out.
        surrogate: Run folder or weights file of a small network trained on the source; or, with --arch, torchvision:DEFAULT or
            another name of published weights.
        train_surrogate: Folder to train a surrogate in: in rounds of 1, 2, 4, ... epochs, each first at a low and then at a higher
            resolution, until the surrogate is good enough and two consecutive rounds agree on what to keep for every target; the
            last possible round has 16 epochs. Existing rounds in the folder are reused, also for other targets.
        surrogate_epochs: With --train-surrogate: train once for this many epochs, in the folder itself; 0 trains in rounds.
        surrogate_val: Held-out .beton with the source's classes, to measure the surrogate's accuracy on; without it, a sample of
            the source is used.
        accept_surrogate: Continue, with a warning, with a surrogate that is hardly better than chance on its own source, or whose
            classes are numbered in another order.
        arch: The surrogate's architecture, if its file does not name it.
        method: lm, fm, ffmm, cmt, cmt-median, random, handpicked, influence, random-samples, moderate, grand, el2n,
            forgetting, prototypes or ssl-prototypes.
        groups: What fm votes for: classes, kmeans (clusters; needs no labels), or the .groups.npz of an earlier run.
        clusters: Number of K-means clusters, for --groups kmeans and ssl-prototypes.
        classes: Names or ids of the classes to keep with --method handpicked; repeat the flag for several.
        scores: CSV or Parquet file with a column score and one of class, record or index, for --method influence.
        reverse: Keep the lowest-ranked instead of the highest-ranked (an ablation).
        seed: Random seed for random choices and K-means.
        cache: Folder for cached features, so that trying another method or --keep takes seconds; the default is .dp4tl-cache beside
            --out; none turns the cache off.
        materialize: Also copy the selected records to this .beton.
        report: Also write an HTML page to this file.
        names: File with readable class names for the page; each line has the class's name, a tab and the text to show
            (Tiny-ImageNet's words.txt has this format).
        batch_size: Images per forward pass.
        size: Side of the images given to the surrogate, in pixels; 0 uses the size it was trained with, else 224.
    """

    source: str
    out: str
    keep: str = ""
    budget: str | float = ""
    images_per_s: float = 0.0
    sample: str = "whole"
    shares: str = "votes"
    smooth: float = 0.0
    per_class: int = 0
    target: list[str] = field(default_factory=list)
    merge: str = "sum"
    surrogate: str | None = None
    train_surrogate: str = ""
    surrogate_epochs: int = 0
    surrogate_val: str = ""
    accept_surrogate: bool = False
    arch: str | None = None
    method: str = "lm"
    groups: str = "classes"
    clusters: int = 500
    classes: list[str] = field(default_factory=list)
    scores: str = ""
    reverse: bool = False
    seed: int = 0
    cache: str = ""
    materialize: str = ""
    report: str = ""
    names: str = ""
    batch_size: int = 256
    size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        BadRecordsConfig.__post_init__(self)
        CacheConfig.__post_init__(self)
        require_one_of("merge", self.merge, MERGES)
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.surrogate_epochs >= 0, "surrogate_epochs", self.surrogate_epochs, "at least 0")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.size >= 0, "size", self.size, "at least 0")
        if self.surrogate and self.train_surrogate:
            raise UsageError("`surrogate` and `train_surrogate`: give one of them")
        self.budget = str(self.budget)
        require(0 <= self.images_per_s < math.inf, "images_per_s", self.images_per_s, "at least 0, and finite")
        if self.keep not in ("", "auto") and self.budget:
            raise UsageError("`keep` and `budget`: give one of them, or `keep=auto` and what the pretraining may cost")
        if not self.keep and not self.budget and self.method != "handpicked":  # which keeps what is picked
            raise UsageError("no amount to keep. Give `keep` (a fraction, a number, samples:F, auto) or `budget=F`")
        self._check_sampling()
        if self.budget:
            self.rules = [Keep.within(self.budget, self.images_per_s) if self.keep else Keep.parse(f"budget:{self.budget}")]
        else:
            self.rules = [Keep.parse(text.strip()) for text in self.keep.split(",") if self.keep]
        if len({rule.text for rule in self.rules}) < len(self.rules):
            raise UsageError(f"`keep={self.keep}`: has the same value twice")
        if len(self.rules) > 1 and self.materialize:
            raise UsageError(f"`materialize`: copies one selection, but `keep={self.keep}` makes {len(self.rules)}")

    def _check_sampling(self) -> None:
        require_one_of("sample", self.sample, SAMPLES)
        require_one_of("shares", self.shares, SHARES)
        require(0 <= self.smooth <= 1, "smooth", self.smooth, "from 0 to 1")
        require(self.per_class >= 0, "per_class", self.per_class, "at least 0")
        soft, by_votes = self.sample == "weighted", self.shares == "votes"
        if not soft and (self.smooth or not by_votes):
            raise UsageError("`smooth` and `shares`: apply only to `sample=weighted`. Give that, or drop them")
        if soft and by_votes and self.reverse:
            raise UsageError("`reverse`: `sample=weighted` draws most from the classes with the most votes. Use `shares=equal`")
        if soft and by_votes and len(self.target) > 1 and self.merge != "sum":
            raise UsageError(f"`merge={self.merge}`: weighted sampling uses the sum of votes. Use `merge=sum` or `shares=equal`")
