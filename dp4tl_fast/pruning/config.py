"""Settings of pruning: the flags of ``dp4tl-fast prune``, the keys of its YAML files."""

from __future__ import annotations

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
        source: Source .beton, or its URL (s3://, gs://, az://, https://); targets likewise.
        out: Selection to write (.json).
        keep: How much to keep: a fraction of the classes (0.4) or a number of them (400); samples:0.4 for the fewest
            classes with that share of the samples; auto for half, a quarter, an eighth ... of the samples, by how broad the
            target is. Counts clusters under --groups kmeans, and records for methods that score records. Several, as in
            0.5,0.25,0.125, write a selection each, with the cut in its name: SEL.0.25.json.
        budget: Instead of --keep: the most classes whose samples cost at most this share of a full epoch (0.4). With --keep auto:
            how long the pretraining is, in epochs of the full source (8epochs), images (500000images) or hours (2hours, with
            --images-per-s): one epoch of what is kept must fit. `pretrain` then takes its epochs from the selection.
        images_per_s: Rate of the pretraining that --budget is given in hours of.
        sample: whole (every epoch reads all that is kept, once) or weighted (soft mapping: every epoch draws as many records as
            --keep would keep, from every class by its share of the votes; another part of large classes in every epoch).
        shares: With --sample weighted: votes, or equal (every record of what --keep keeps equally often).
        smooth: With --sample weighted: part of the shares, 0 to 1, that goes to all classes by their size; 1 is a fresh random
            subset of the source in every epoch.
        per_class: Most records of a class (or cluster) that an epoch reads, a fresh part of it every time; 0 is all. With
            --sample weighted the other classes get what a class may not take.
        target: Target *training* .beton; give it again for several targets.
        merge: How several targets become one selection: sum (scores are added), union (of the selections for each), or
            turns (each in turn chooses its best class). The selections for each are written beside it.
        surrogate: Run folder or weights of a small network trained on the source; or torchvision:DEFAULT (or another name
            of published weights) with --arch.
        train_surrogate: Folder to train a surrogate in: in rounds of 1, 2, 4, ... epochs, at a low and then a higher resolution,
            until two rounds agree on what to keep for every target. What is there is used again, for other targets, too.
        surrogate_epochs: Instead, one run of this length, in the folder itself; 0 trains until it is enough.
        surrogate_val: Held-out .beton of the source's classes, to measure the surrogate's accuracy on; without it a sample of the
            source is used.
        accept_surrogate: Go on, with a warning, with a surrogate that is hardly better than chance on its own source, or whose
            classes are numbered in another order.
        arch: The surrogate's architecture, where its file does not say.
        method: lm, fm, ffmm, cmt, cmt-median, random, handpicked, influence, random-samples, moderate, grand, el2n,
            forgetting, prototypes or ssl-prototypes.
        groups: What fm votes for: classes, kmeans (no labels needed), or the .groups.npz of an earlier run.
        clusters: K of K-means, for --groups kmeans and ssl-prototypes.
        classes: Names or ids for --method handpicked.
        scores: CSV or Parquet with a column score and one of class, record or index, for --method influence.
        reverse: Keep the lowest instead (an ablation).
        seed: For random and K-means.
        cache: Folder for features, so that another method or ratio takes seconds; the default is .dp4tl-cache beside
            --out, none keeps nothing.
        materialize: Also copy the surviving records to this .beton.
        report: Also write this HTML page.
        names: File of human-readable class names, for the page: the class's name, a tab, what to show (Tiny-ImageNet's words.txt).
        batch_size: Images per forward pass.
        size: Side of the images the surrogate sees; 0 is what it was trained with, else 224.
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
        require(self.images_per_s >= 0, "images_per_s", self.images_per_s, "at least 0")
        if self.keep not in ("", "auto") and self.budget:
            raise UsageError("`keep` and `budget`: give one of them, or `keep=auto` and what the pretraining may cost")
        if not self.keep and not self.budget and self.method != "handpicked":  # which keeps what is picked
            raise UsageError("how much? Give `keep` (a fraction, a number, samples:F, auto) or `budget=F`")
        self._check_sampling()
        if self.budget:
            self.rules = [Keep.within(self.budget, self.images_per_s) if self.keep else Keep.parse(f"budget:{self.budget}")]
        else:
            self.rules = [Keep.parse(text) for text in self.keep.split(",") if self.keep]
        if len({rule.text for rule in self.rules}) < len(self.rules):
            raise UsageError(f"`keep={self.keep}`: names a cut twice")
        if len(self.rules) > 1 and self.materialize:
            raise UsageError(f"`materialize`: copies one selection, but `keep={self.keep}` makes {len(self.rules)}")

    def _check_sampling(self) -> None:
        require_one_of("sample", self.sample, SAMPLES)
        require_one_of("shares", self.shares, SHARES)
        require(0 <= self.smooth <= 1, "smooth", self.smooth, "from 0 to 1")
        require(self.per_class >= 0, "per_class", self.per_class, "at least 0")
        soft, by_votes = self.sample == "weighted", self.shares == "votes"
        if not soft and (self.smooth or not by_votes):
            raise UsageError("`smooth` and `shares` say how `sample=weighted` draws. Give that, or drop them")
        if soft and by_votes and self.reverse:
            raise UsageError("`reverse`: `sample=weighted` draws most from the classes with most votes. Use `shares=equal`")
        if soft and by_votes and len(self.target) > 1 and self.merge != "sum":
            raise UsageError(f"`merge={self.merge}`: votes are shared out as their sum. Use `merge=sum`, or `shares=equal`")
