"""Which selections one call writes, and where: one for each cut, and of several targets one for each beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dp4tl_fast.mapping.keep import Keep
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.remote.url import shown


@dataclass(frozen=True)
class Cut:
    """One rule and its files: ``out``, then those ``per_target``. ``rule`` is ``None`` for all that a method picks."""

    rule: Keep | None
    out: str
    per_target: dict[str, str]

    @property
    def text(self) -> str:
        return self.rule.text if self.rule else ""

    @property
    def paths(self) -> list[str]:
        return [self.out, *self.per_target.values()]


def cuts(config: PruneConfig, uses_targets: bool) -> list[Cut]:
    """With a single rule ``config.out`` itself; of several each has its rule in the name: ``SEL.0.25.json``."""
    rules = config.rules
    if len(rules) < 2:
        return [_cut(rules[0] if rules else None, config.out, config, uses_targets)]
    return [_cut(rule, inserted(config.out, rule.text.replace(":", "-")), config, uses_targets) for rule in rules]


def _cut(rule: Keep | None, out: str, config: PruneConfig, uses_targets: bool) -> Cut:
    if len(config.target) < 2 or not uses_targets:
        return Cut(rule, out, {})
    stems = [Path(shown(t)).stem for t in config.target]
    names = stems if len(set(stems)) == len(stems) else [f"{i}-{stem}" for i, stem in enumerate(stems)]
    return Cut(rule, out, {shown(t): inserted(out, name) for t, name in zip(config.target, names, strict=True)})


def inserted(out: str, name: str) -> str:
    return f"{out.removesuffix('.json')}.{name}.json"
