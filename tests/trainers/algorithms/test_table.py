"""The table of algorithms, what settings change in it, and the contradictions that are refused."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from forkgym.trainers.algorithms.config import USES, CreditConfig, LossConfig, SegmentConfig, resolved
from forkgym.trainers.algorithms.table import ALGORITHMS, Algorithm, AlgorithmName
from forkgym.trainers.config import TrainerConfig

NAMES: tuple[AlgorithmName, ...] = get_args(AlgorithmName)


def resolve(
    name: str,
    segments: dict[str, Any] | None = None,
    credit: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
) -> Algorithm:
    return resolved(name, SegmentConfig(**segments or {}), CreditConfig(**credit or {}), LossConfig(**loss or {}))


def test_every_published_algorithm_has_a_row() -> None:
    wanted = "reinforce rloo remax grpo dr_grpo dapo gspo cispo gpg arpo arpo-gpg ppo"
    assert set(ALGORITHMS) == set(NAMES) == set(wanted.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_a_config_that_holds(name: AlgorithmName) -> None:
    assert resolve(name) == ALGORITHMS[name]
    assert TrainerConfig(algorithm=name).settings == ALGORITHMS[name]


# surrogate, ratio, normalisation, baseline, whether divided by the deviation: as the papers have them
PUBLISHED = {
    "reinforce": ("gradient", "none", "sum", "none", False),
    "rloo": ("gradient", "none", "sum", "others", False),
    "remax": ("gradient", "none", "sum", "greedy", False),
    "grpo": ("clipped", "token", "trajectories", "mean", True),
    "dr_grpo": ("clipped", "token", "length", "mean", False),
    "dapo": ("clipped", "token", "tokens", "mean", True),
    "gspo": ("clipped", "sequence-geometric", "trajectories", "mean", True),
    "cispo": ("truncated", "token", "tokens", "mean", True),
    "gpg": ("gradient", "none", "tokens", "mean", False),
    "arpo-gpg": ("gradient", "none", "tokens", "mean", False),
    "arpo": ("clipped", "token", "tokens", "mean", True),
    "ppo": ("clipped", "token", "tokens", "critic", False),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_are_what_the_papers_say(name: AlgorithmName) -> None:
    row = ALGORITHMS[name]
    assert PUBLISHED[name] == (row.surrogate, row.ratio, row.normalisation, row.baseline, row.divides_by_deviation)
    assert (row.branching == "entropy") == (row.calibrates) == (row.segments == "turn") == name.startswith("arpo")
    assert (row.correction == "rescale") == name.endswith("gpg")


def test_numbers_of_the_rows() -> None:
    clips = {name: (row.clip_low, row.clip_high) for name, row in ALGORITHMS.items() if row.ratio != "none"}
    assert clips == {
        "arpo": (0.2, 0.2),
        "grpo": (0.2, 0.2),
        "dr_grpo": (0.2, 0.2),
        "ppo": (0.2, 0.2),
        "dapo": (0.2, 0.28),
        "gspo": (3e-4, 4e-4),
        "cispo": (1.0, 4.0),
    }
    assert {name: row.min_valid_fraction for name, row in ALGORITHMS.items() if row.min_valid_fraction} == {"dapo": 1.0}


@pytest.mark.parametrize(
    ("section", "field", "value", "changed"),
    [
        ("segments", "kind", "marker", {"segments": "marker"}),
        ("credit", "baseline", "others", {"baseline": "others"}),
        ("credit", "divide_by_deviation", False, {"divides_by_deviation": False}),
        ("credit", "calibrate", False, {"calibrates": False}),
        ("credit", "correction", "damp", {"correction": "damp"}),
        ("credit", "min_valid_fraction", 0.6, {"min_valid_fraction": 0.6}),
        ("loss", "surrogate", "truncated", {"surrogate": "truncated"}),
        ("loss", "ratio", "segment-product", {"ratio": "segment-product"}),
        ("loss", "clip_low", 0.0, {"clip_low": 0.0}),
        ("loss", "clip_high", 0.28, {"clip_high": 0.28}),
        ("loss", "normalisation", "sum", {"normalisation": "sum"}),
    ],
)
def test_a_setting_changes_one_choice(section: str, field: str, value: object, changed: dict[str, Any]) -> None:
    found = resolve("arpo", **{section: {field: value}})
    assert found == replace(ALGORITHMS["arpo"], **changed)
    assert found != ALGORITHMS["arpo"]


@pytest.mark.parametrize("baseline", ["none", "greedy", "critic"])
@pytest.mark.parametrize("name", ["arpo-gpg", "gpg", "dapo"])
def test_what_makes_up_for_groups_without_a_signal_goes_with_the_groups_mean(name: str, baseline: str) -> None:
    row, found = ALGORITHMS[name], resolve(name, credit={"baseline": baseline})
    assert (row.correction, row.min_valid_fraction) != ("none", 0.0)
    assert (found.correction, found.min_valid_fraction) == ("none", 0.0)
    assert resolve(name, credit={"baseline": "others"}) == replace(row, baseline="others")
    off = {"baseline": baseline, "correction": "none", "min_valid_fraction": 0.0}
    assert resolve(name, credit=off) == found


@pytest.mark.parametrize("name", ["arpo", "grpo"])
def test_what_a_critic_does_not_do_goes_with_the_groups_baseline(name: str) -> None:
    row, found = ALGORITHMS[name], resolve(name, credit={"baseline": "critic"})
    assert row.divides_by_deviation
    assert found == replace(row, baseline="critic", divides_by_deviation=False, calibrates=False)
    off = {"baseline": "critic", "divide_by_deviation": False, "calibrate": False}
    assert resolve(name, credit=off) == found


# Each is refused by its full name, with the value that was given and the one that was expected.
WITHOUT_USE = [
    ("gpg", {"loss": {"clip_low": 0.1}}, "loss.clip_low is 0.1, expected none with", "loss.surrogate gradient"),
    ("gpg", {"loss": {"clip_high": 0.2}}, "loss.clip_high is 0.2, expected none with", "loss.surrogate gradient"),
    ("gpg", {"loss": {"kl": "k1"}}, "loss.kl is k1, expected k3 with", "loss.kl_weight 0.0"),
    ("grpo", {"loss": {"value_weight": 3.0}}, "loss.value_weight is 3.0, expected 0.5 with", "credit.baseline mean"),
    (
        "rloo",
        {"loss": {"value_learning_rate": 9.0}},
        "loss.value_learning_rate is 9.0, expected 0.001 with",
        "credit.baseline others",
    ),
    ("gpg", {"credit": {"gae_lambda": 0.3}}, "credit.gae_lambda is 0.3, expected 1.0 with", "credit.baseline mean"),
    (
        "gpg",
        {"credit": {"extra_rounds": 9}},
        "credit.extra_rounds is 9, expected 4 with",
        "credit.min_valid_fraction 0.0",
    ),
    (
        "dapo",
        {"credit": {"baseline": "critic", "extra_rounds": 9}},
        "credit.extra_rounds is 9, expected 4 with",
        "credit.min_valid_fraction 0.0",
    ),
    (
        "arpo-gpg",
        {"credit": {"baseline": "critic", "correction": "rescale"}},
        "credit.correction is rescale, expected none with",
        "credit.baseline critic",
    ),
    (
        "reinforce",
        {"credit": {"correction": "damp"}},
        "credit.correction is damp, expected none with",
        "credit.baseline none",
    ),
    (
        "remax",
        {"credit": {"min_valid_fraction": 1.0}},
        "credit.min_valid_fraction is 1.0, expected 0.0 with",
        "credit.baseline greedy",
    ),
]


@pytest.mark.parametrize(("name", "sections", "refused", "chosen"), WITHOUT_USE)
def test_a_setting_that_does_nothing_is_refused(
    name: str, sections: dict[str, dict[str, Any]], refused: str, chosen: str
) -> None:
    message = f"trainer.{refused} trainer.{chosen} (trainer.algorithm {name}): leave it out, or choose "
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(name, **sections)


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("cispo", {"loss": {"clip_low": 0.5, "clip_high": 2.0}}),
        ("gpg", {"loss": {"surrogate": "clipped", "ratio": "token", "clip_low": 0.5, "clip_high": 2.0}}),
        ("gpg", {"loss": {"kl": "k1", "kl_weight": 1}}),
        ("gpg", {"credit": {"baseline": "critic", "gae_lambda": 0.3}, "loss": {"value_weight": 3.0}}),
        ("ppo", {"loss": {"value_learning_rate": 9.0}}),
        ("gpg", {"credit": {"min_valid_fraction": 1, "extra_rounds": 9, "correction": "damp"}}),
        ("dapo", {"credit": {"extra_rounds": 9}}),
        ("reinforce", {"credit": {"return_to_go": True, "divide_by_deviation": True}}),
        # what says that nothing is asked for
        ("gpg", {"credit": {"gae_lambda": 1.0, "extra_rounds": 4}, "loss": {"kl": "k3", "value_weight": 0.5}}),
    ],
)
def test_a_setting_that_does_something_is_accepted(name: str, sections: dict[str, dict[str, Any]]) -> None:
    resolve(name, **sections)


def test_the_uses_name_settings_that_exist() -> None:
    sections = {"segments": SegmentConfig, "credit": CreditConfig, "loss": LossConfig}
    for use in USES:
        for name in (use.setting, use.chooser):
            trainer, section, field = name.split(".")
            assert trainer == "trainer"
            assert field in {one.name for one in fields(sections[section])}
    assert len({use.setting for use in USES}) == len(USES)


@pytest.mark.parametrize(
    ("name", "sections", "message"),
    [
        ("a2c", {}, r"trainer\.algorithm is 'a2c', expected one of arpo-gpg, "),
        # a ratio that nothing uses; a surrogate that lacks one
        ("gpg", {"loss": {"ratio": "token"}}, r"trainer\.loss\.surrogate gradient has no ratio, got ratio token"),
        ("grpo", {"loss": {"surrogate": "gradient"}}, r"trainer\.loss\.surrogate gradient has no ratio"),
        ("gpg", {"loss": {"surrogate": "clipped"}}, r"trainer\.loss\.surrogate clipped needs a ratio"),
        ("cispo", {"loss": {"ratio": "none"}}, r"trainer\.loss\.surrogate truncated needs a ratio"),
        # node weights
        ("gpg", {"credit": {"tree_weights": "node"}}, r"trainer\.credit\.tree_weights is node and the baseline mean"),
        ("ppo", {"credit": {"tree_weights": "node"}}, r"trainer\.credit\.tree_weights is node and the baseline critic"),
        (
            "rloo",
            {"credit": {"tree_weights": "node", "return_to_go": True}},
            r"trainer\.credit\.return_to_go is true, expected false with tree_weights node",
        ),
        # one ratio for what has several advantages
        (
            "grpo",
            {"loss": {"ratio": "segment-product"}, "credit": {"return_to_go": True}},
            r"trainer\.loss\.ratio is segment-product: one ratio for a whole trajectory",
        ),
        (
            "arpo",
            {"segments": {"kind": "trajectory"}, "loss": {"ratio": "segment-geometric"}},
            r"trainer\.loss\.ratio is segment-geometric: one ratio for a whole trajectory",
        ),
        ("arpo", {"loss": {"ratio": "sequence-product"}}, r"trainer\.loss\.ratio is sequence-product: one ratio"),
        ("gspo", {"credit": {"calibrate": True}}, r"trainer\.loss\.ratio is sequence-geometric: one ratio"),
        ("ppo", {"loss": {"ratio": "sequence-geometric"}}, r"trainer\.loss\.ratio is sequence-geometric: one ratio"),
        # what a critic has no use for
        ("ppo", {"credit": {"return_to_go": True}}, r"trainer\.credit\.return_to_go is true, expected false with"),
        ("ppo", {"credit": {"calibrate": True}}, r"trainer\.credit\.calibrate is true, expected false with"),
        ("ppo", {"credit": {"divide_by_deviation": True}}, r"trainer\.credit\.divide_by_deviation is true"),
        # the reward of a whole trajectory against what is still to go
        (
            "remax",
            {"credit": {"return_to_go": True}},
            r"trainer\.credit\.return_to_go is true, expected false with trainer\.credit\.baseline greedy: all that",
        ),
        # corrections that are there already, or that nothing is left to bound for
        (
            "gpg",
            {"loss": {"dual_clip": 3.0}},
            r"loss\.dual_clip is 3\.0, expected none with .*surrogate gradient .*gpg",
        ),
        ("cispo", {"loss": {"dual_clip": 3.0}}, r"loss\.dual_clip is 3\.0, expected none with .*surrogate truncated "),
        (
            "grpo",
            {"loss": {"importance_correction": True}},
            r"trainer\.loss\.importance_correction is true, expected false with the ratio token",
        ),
        # numbers that have no effect with this kind of segments, be it given or the algorithm's own
        (
            "gpg",
            {"segments": {"missed": 0.5}},
            r"trainer\.segments\.missed is 0\.5, expected 0\.0 with .*segments\.kind trajectory .*marker or token",
        ),
        ("grpo", {"segments": {"spurious": 0.1}}, r"trainer\.segments\.spurious is 0\.1, .*kind trajectory "),
        ("arpo", {"segments": {"missed": 0.5}}, r"trainer\.segments\.missed is 0\.5, expected 0\.0 .*kind turn "),
        ("ppo", {"segments": {"spurious": 0.1}}, r"trainer\.segments\.spurious is 0\.1, .*kind token "),
        (
            "arpo",
            {"segments": {"kind": "entropy", "mean_length": 8.0}},
            r"trainer\.segments\.mean_length is 8\.0, expected 16\.0 with .*kind entropy .*choose random there",
        ),
        (
            "arpo",
            {"segments": {"kind": "random", "entropy_share": 0.1}},
            r"trainer\.segments\.entropy_share is 0\.1, expected 0\.2 with .*kind random .*choose entropy there",
        ),
    ],
)
def test_contradictions_are_refused_by_name(name: str, sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name, **sections)


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("rloo", {"credit": {"tree_weights": "node"}}),
        ("remax", {"credit": {"tree_weights": "node"}}),
        ("reinforce", {"credit": {"tree_weights": "node", "calibrate": True}}),
        ("arpo", {"loss": {"ratio": "segment-product"}}),
        ("arpo", {"loss": {"ratio": "segment-geometric", "dual_clip": 3.0}}),
        ("arpo", {"credit": {"calibrate": False}, "loss": {"ratio": "sequence-geometric"}}),
        ("ppo", {"segments": {"kind": "trajectory"}, "loss": {"ratio": "sequence-product"}}),
        ("arpo-gpg", {"credit": {"baseline": "critic"}}),
        ("gpg", {"loss": {"surrogate": "clipped", "ratio": "segment-geometric"}}),
        ("gpg", {"segments": {"missed": 0.0, "mean_length": 16.0}}),
        ("arpo", {"segments": {"spurious": 0.1}}),
        ("ppo", {"segments": {"missed": 0.1}}),
        ("gpg", {"segments": {"kind": "random", "mean_length": 8.0, "missed": 0.1, "spurious": 0.1}}),
        ("gpg", {"segments": {"kind": "entropy", "entropy_share": 0.1, "missed": 0.1, "spurious": 0.1}}),
        ("gpg", {"segments": {"kind": "marker", "missed": 0.1, "spurious": 0.1}}),
    ],
)
def test_what_goes_together_is_accepted(name: str, sections: dict[str, dict[str, Any]]) -> None:
    resolve(name, **sections)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (SegmentConfig, {"mean_length": 0.5}, r"trainer\.segments\.mean_length is 0\.5, expected at least 1"),
        (SegmentConfig, {"mean_length": float("nan")}, r"trainer\.segments\.mean_length is nan"),
        (SegmentConfig, {"entropy_share": 1.5}, r"trainer\.segments\.entropy_share is 1\.5, expected 0 to 1"),
        (SegmentConfig, {"missed": -0.1}, r"trainer\.segments\.missed is -0\.1"),
        (SegmentConfig, {"spurious": float("nan")}, r"trainer\.segments\.spurious is nan"),
        (CreditConfig, {"gae_lambda": 1.1}, r"trainer\.credit\.gae_lambda is 1\.1, expected 0 to 1"),
        (CreditConfig, {"min_valid_fraction": -1.0}, r"trainer\.credit\.min_valid_fraction is -1\.0"),
        (CreditConfig, {"extra_rounds": -1}, r"trainer\.credit\.extra_rounds is -1, expected 0 or more"),
        (
            CreditConfig,
            {"shuffle_rewards": True, "return_to_go": True},
            r"trainer\.credit\.return_to_go is true, expected false where rewards are shuffled",
        ),
        (LossConfig, {"clip_low": 1.5}, r"trainer\.loss\.clip_low is 1\.5, expected 0 to 1"),
        (LossConfig, {"clip_high": -0.1}, r"trainer\.loss\.clip_high is -0\.1, expected a finite number, 0 or more"),
        (LossConfig, {"kl_weight": float("nan")}, r"trainer\.loss\.kl_weight is nan"),
        (LossConfig, {"entropy_weight": -1.0}, r"trainer\.loss\.entropy_weight is -1\.0"),
        (LossConfig, {"value_weight": -1.0}, r"trainer\.loss\.value_weight is -1\.0"),
        (LossConfig, {"value_learning_rate": -1.0}, r"trainer\.loss\.value_learning_rate is -1\.0"),
        (LossConfig, {"dual_clip": 1.0}, r"trainer\.loss\.dual_clip is 1\.0, expected a finite number above 1"),
        (LossConfig, {"dual_clip": float("inf")}, r"trainer\.loss\.dual_clip is inf"),
        (LossConfig, {"kl_weight": float("inf")}, r"trainer\.loss\.kl_weight is inf, expected a finite number"),
        (LossConfig, {"entropy_weight": float("inf")}, r"trainer\.loss\.entropy_weight is inf"),
    ],
)
def test_numbers_are_checked(section: type[object], values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**values)


@pytest.mark.parametrize("name", [name for name in NAMES if ALGORITHMS[name].surrogate == "gradient"])
def test_more_than_one_update_is_refused_without_a_ratio(name: AlgorithmName) -> None:
    message = rf"trainer\.updates_per_rollout is 2 for {name}, which has no ratio .*importance_correction"
    with pytest.raises(ValueError, match=message):
        TrainerConfig(algorithm=name, updates_per_rollout=2)
    TrainerConfig(algorithm=name, updates_per_rollout=2, loss=LossConfig(importance_correction=True))


@pytest.mark.parametrize("name", [name for name in NAMES if ALGORITHMS[name].ratio != "none"])
def test_a_ratio_allows_more_than_one_update(name: AlgorithmName) -> None:
    assert TrainerConfig(algorithm=name, updates_per_rollout=4).updates_per_rollout == 4


def test_weights_of_several_updates_are_refused_where_there_is_one() -> None:
    message = (
        r"trainer\.loss\.importance_correction is true, expected false with trainer\.updates_per_rollout 1, .*leave"
    )
    with pytest.raises(ValueError, match=message):
        TrainerConfig(algorithm="gpg", loss=LossConfig(importance_correction=True))


def test_a_warm_up_is_no_longer_than_the_run_but_for_the_default() -> None:
    assert TrainerConfig(num_steps=20, warmup_steps=20).warmup_steps == 20
    assert TrainerConfig(num_steps=2).warmup_steps == 5
    with pytest.raises(ValueError, match=r"trainer\.warmup_steps is 500, expected at most trainer\.num_steps, 200"):
        TrainerConfig(warmup_steps=500)


def test_a_ratio_that_settings_add_or_take_away_decides() -> None:
    clipped = LossConfig(surrogate="clipped", ratio="token")
    TrainerConfig(algorithm="gpg", updates_per_rollout=2, loss=clipped)
    plain = LossConfig(surrogate="gradient", ratio="none")
    with pytest.raises(ValueError, match=r"trainer\.updates_per_rollout is 2 for grpo"):
        TrainerConfig(algorithm="grpo", updates_per_rollout=2, loss=plain)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("updates_per_rollout", 0),
        ("micro_batch_tokens", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("final_learning_rate", math.nan),
        ("final_learning_rate", math.inf),
        ("warmup_steps", -1),
        ("warmup_steps", 201),
    ],
)
def test_numbers_of_the_trainer_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{field} is {value}, expected"):
        TrainerConfig(**{field: value})  # type: ignore[arg-type]  # fields by name
