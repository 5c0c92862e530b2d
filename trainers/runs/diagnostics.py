"""Alarms in words for the known ways in which a run fails, from the figures that each step writes.

`RULES` is the table of them. A figure's mean over the newest steps is compared with a limit, which for some is taken
from the run's first steps. A `Watch` is what is known between two steps. It follows from ``metrics.jsonl`` alone, so
that a run that is resumed goes on as if it had not been interrupted (`watch_from`).
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from forkgym.trainers.algorithms.table import GROUP_BASELINES, Algorithm
from forkgym.trainers.runs.diagnostics_config import DiagnosticsConfig

Kind = Literal["below", "above", "below start", "above start", "rise"]
Figures = Mapping[str, float]

# An alarm is over once the figure is better than its limit by this share, so that one at the limit is said once.
MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Rule:
    """When a figure raises an alarm.

    Attributes:
        name: Of the alarm.
        figure: Name of the metric.
        kind: ``below`` or ``above``: the limit is a field of the config; ``below start`` or ``above start``: that field
            times the figure at the start of the run; ``rise``: that field added to it.
        field: Of `DiagnosticsConfig`.
        meaning: What has happened.
        advice: What to try.
    """

    name: str
    figure: str
    kind: Kind
    field: str
    meaning: str
    advice: str

    def limit(self, config: DiagnosticsConfig, start: float | None) -> float | None:
        """Return the figure's limit; None where it depends on the start of the run, which is not known."""
        given = float(getattr(config, self.field))
        if self.kind in ("below", "above"):
            return given
        if start is None:
            return None
        return start + given if self.kind == "rise" else start * given

    def is_bad(self, value: float, limit: float, *, standing: bool) -> bool:
        """Whether the alarm stands now; one that stood before stands until the figure is better by `MARGIN`."""
        if self.kind in ("below", "below start"):
            return value < limit * (1.0 + MARGIN) if standing else value < limit
        return value > limit * (1.0 - MARGIN) if standing else value > limit


RULES = (
    Rule(
        "advantage collapse",
        "groups/valid_fraction",
        "below",
        "min_valid_fraction",
        "nearly all groups have equal rewards, so that nothing is learnt from them",
        "harder tasks if groups/solved_fraction is high, easier ones if it is low; more rollout.num_generations; "
        "trainer.credit.min_valid_fraction",
    ),
    Rule(
        "segmentation drift, malformed",
        "turns/malformed_fraction",
        "rise",
        "malformed_rise",
        "turns hold no call that can be run and no answer",
        "read the errors in the rollout files; a lower trainer.learning_rate; env.malformed_penalty",
    ),
    Rule(
        "segmentation drift, lost",
        "turns/cut_off_fraction",
        "rise",
        "malformed_rise",
        "turns reach a limit before they close a marker",
        "a higher rollout.max_turn_tokens if the text is sound; else a lower trainer.learning_rate",
    ),
    Rule(
        "segmentation drift, avoided",
        "markers/turn_mean",
        "below start",
        "min_markers",
        "the policy writes fewer markers, so that segments no longer follow its steps",
        "look whether the rewards pay for leaving markers out; trainer.segments.kind turn does not depend on them",
    ),
    Rule(
        "calibration variance",
        "calibration/noise",
        "above",
        "max_calibration_noise",
        "the advantages of shared turns are means over too few trajectories",
        "more rollout.num_generations for the same rollout.initial_generations; a larger rollout.branching.width; "
        "trainer.credit.calibrate false",
    ),
    Rule(
        "entropy collapse",
        "entropy/mean",
        "below start",
        "min_entropy",
        "the policy hardly varies any more, so that a group's trajectories become the same",
        "trainer.loss.entropy_weight; a lower trainer.learning_rate; where trainer.updates_per_rollout is above 1 and "
        "ratios are clipped, a higher trainer.loss.clip_high",
    ),
    Rule(
        "length growth, turn",
        "tokens/turn_mean",
        "above start",
        "max_growth",
        "turns have become long",
        "see whether accuracy grew with them; if not, trainer.loss.normalisation, a lower rollout.max_turn_tokens",
    ),
    Rule(
        "length growth, trajectory",
        "tokens/trajectory_mean",
        "above start",
        "max_growth",
        "trajectories have become long",
        "see whether accuracy grew with them; if not, trainer.loss.normalisation, a lower env.max_turns",
    ),
    Rule(
        "tool use lost",
        "tool_calls/mean",
        "below start",
        "min_tool_use",
        "the policy hardly calls tools any more",
        "look whether tasks can be guessed without tools, and whether tools fail; a lower trainer.learning_rate",
    ),
    Rule(
        "clip share",
        "clip/fraction",
        "above",
        "max_clip_fraction",
        "many tokens are outside the clip range, where their gradient is cut",
        "fewer trainer.updates_per_rollout; a lower trainer.learning_rate; a wider trainer.loss.clip_high",
    ),
    Rule(
        "clip share, last update",
        "last/clip/fraction",
        "above",
        "max_clip_fraction",
        "by the last update many tokens are outside the clip range, where their gradient is cut",
        "fewer trainer.updates_per_rollout; a lower trainer.learning_rate; a wider trainer.loss.clip_high",
    ),
    Rule(
        "effective sample size",
        "mismatch/effective_sample_size",
        "below",
        "min_effective_sample_size",
        "the policy that is trained is not the one that sampled, and few tokens carry all the weight",
        "look whether the agent has the newest weights, the same precision and the same temperature as the trainer",
    ),
)
WATCHED = frozenset(rule.figure for rule in RULES)


def rules_for(algorithm: Algorithm) -> tuple[Rule, ...]:
    """The rules that are true of an algorithm.

    Groups with equal rewards teach nothing only where they are what rewards are compared with, and the advantages of
    shared turns are means only where they are calibrated.
    """
    untrue = {
        "advantage collapse": algorithm.baseline not in GROUP_BASELINES,
        "calibration variance": not algorithm.calibrates,
    }
    return tuple(rule for rule in RULES if not untrue.get(rule.name, False))


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that has begun, or is over.

    Attributes:
        rule: Which.
        value: The figure's mean over the newest steps.
        limit: What it is compared with.
        window: Steps that the mean is over.
        is_over: Whether the figure is good again.
    """

    rule: Rule
    value: float
    limit: float
    window: int
    is_over: bool = False

    @property
    def level(self) -> int:
        """Of the log: a warning, and a notice once it is over."""
        return logging.INFO if self.is_over else logging.WARNING

    @property
    def sentence(self) -> str:
        """The figure, its limit and what to try."""
        rule = self.rule
        where = "below" if rule.kind.startswith("below") else "above"
        source = f"diagnostics.{rule.field}"
        source += "" if rule.kind in ("below", "above") else " against the start of the run"
        figure = f"{rule.figure} is {self.value:.3g}, the mean over {self.window} steps"
        if self.is_over:
            return f"{rule.name} is over: {figure}"
        limit = f"{where} its limit {self.limit:.3g} ({source})"
        return f"{rule.name}: {figure}, {limit}: {rule.meaning}; try: {rule.advice}"


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of a run between two steps.

    Attributes:
        config: The limits.
        rules: What is watched for.
        start: Watched figures of the first steps, at most `DiagnosticsConfig.window`.
        recent: Those of the newest steps, at most as many.
        standing: Names of the alarms that have begun and are not over.
    """

    config: DiagnosticsConfig
    rules: tuple[Rule, ...] = RULES
    start: tuple[Figures, ...] = ()
    recent: tuple[Figures, ...] = ()
    standing: frozenset[str] = frozenset()

    def after(self, metrics: Mapping[str, float | None]) -> tuple[Watch, tuple[Alarm, ...]]:
        """Take a step in; nothing is judged before the first `DiagnosticsConfig.window` steps.

        Args:
            metrics: What the step measured. A figure may lack, as after a step that was skipped, or be no finite
                number; it is judged where half of the steps or more have it.

        Returns:
            What is known now, and the alarms that have begun or ended with this step.
        """
        window = self.config.window
        if window == 0:
            return self, ()
        figures = {name: value for name in WATCHED if (value := finite(metrics.get(name))) is not None}
        start = self.start if len(self.start) == window else (*self.start, figures)
        recent = (*self.recent, figures)[-window:]
        found = alarms(self, start, recent) if len(recent) == window else ()
        begun = {alarm.rule.name for alarm in found if not alarm.is_over}
        over = {alarm.rule.name for alarm in found if alarm.is_over}
        return replace(self, start=start, recent=recent, standing=(self.standing | begun) - over), found


def alarms(watch: Watch, start: Sequence[Figures], recent: Sequence[Figures]) -> tuple[Alarm, ...]:
    """Return the alarms that change when the newest steps are these."""
    found: list[Alarm] = []
    for rule in watch.rules:
        value = mean(recent, rule.figure)
        limit = rule.limit(watch.config, mean(start, rule.figure))
        if value is None or limit is None:
            continue
        standing = rule.name in watch.standing
        if rule.is_bad(value, limit, standing=standing) != standing:
            found.append(Alarm(rule, value, limit, len(recent), is_over=standing))
    return tuple(found)


def watch_from(
    config: DiagnosticsConfig, history: Iterable[Mapping[str, float | None]], rules: tuple[Rule, ...] = RULES
) -> Watch:
    """Return what is known after some steps; their alarms have been said.

    Args:
        config: The limits.
        history: Metrics of each step from the run's first one on, as ``metrics.jsonl`` holds them.
        rules: What is watched for.
    """
    watch = Watch(config, rules)
    for metrics in history:
        watch, _ = watch.after(metrics)
    return watch


def mean(steps: Sequence[Figures], name: str) -> float | None:
    """Return a figure's mean over the steps that have it; None where that is less than half of them."""
    values = [step[name] for step in steps if name in step]
    return statistics.fmean(values) if 2 * len(values) >= len(steps) and values else None


def finite(value: float | None) -> float | None:
    """Return a number as it is; None for one that is not finite."""
    return value if value is not None and math.isfinite(value) else None
