"""Optimizer steps on trees: what splits a step changes no gradient, and each part of the loss does what it is for."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator

from forkgym.envs.tasks import StopReason
from forkgym.trainers.algorithms.config import CreditConfig, LossConfig, SegmentConfig
from forkgym.trainers.algorithms.segments import Marking
from forkgym.trainers.algorithms.table import AlgorithmName
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.forward.forwards import micro_batches
from forkgym.trainers.learner import Learner, ValueHead, make_learner
from forkgym.trainers.reference import Reference
from forkgym.trainers.types import Group
from forkgym.trainers.update import Circumstances, update
from tests.trainers.logprobs import PAD, row_logprobs, rows_of, sampled_by_model, tiny_qwen
from tests.trainers.random_trees import VOCABULARY, random_tree
from tests.trainers.small_trees import three_leaves, trajectory, turn, with_rewards

FORWARD_NAMES: tuple[Literal["padded", "tree"], ...] = ("padded", "tree")


def model_of(seed: int = 0) -> torch.nn.Module:
    """Larger weights than a new model's, so that its policy is far from uniform."""
    model = tiny_qwen(VOCABULARY, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


MODEL = model_of()


def four_leaves(uid: str, rewards: Sequence[float], lengths: Sequence[int]) -> Group:
    """Two first turns with two leaves each; the leaves have as many tokens as given."""
    turns = [turn("t0d0", None, (1, 2), seen=(5,)), turn("t1d0", None, (3,), seen=(5, 4))]
    leaves = [("t0d1", "t0d0"), ("t1d1", "t1d0"), ("t2d1", "t0d0"), ("t3d1", "t1d0")]
    for number, ((leaf, parent), reward, length) in enumerate(zip(leaves, rewards, lengths, strict=True)):
        tokens = [(number + 2 * place) % VOCABULARY for place in range(length)]
        turns.append(turn(leaf, parent, tokens, reward=reward))
    return Group(
        env_id="toy",
        task_uid=uid,
        question="?",
        answer="!",
        prompt_tokens=(1, 2, 3),
        turns=tuple(turns),
        trajectories=tuple(trajectory(leaf, reward) for (leaf, _), reward in zip(leaves, rewards, strict=True)),
    )


def eight_rows() -> list[Group]:
    """Two groups of four trajectories, sampled by the model; rows of 7 to 14 tokens."""
    groups = [
        four_leaves("toy/0", (1.0, 0.0, 0.0, 0.5), (4, 2, 7, 1)),
        four_leaves("toy/1", (0.0, 1.0, 1.0, 0.0), (3, 8, 5, 6)),
    ]
    return sampled_by_model(MODEL, groups)


def hardly_rewarded() -> list[Group]:
    """The same with rewards of next to nothing, so that what is added to the loss decides."""
    return [with_rewards(group, [0.001 * one for one in group.rewards]) for group in eight_rows()]


def plain_learner(learning_rate: float = 0.5, **parts: Any) -> Learner:
    """A copy of the model under plain gradient descent, which does not blow rounding up as AdamW does."""
    model = copy.deepcopy(MODEL)
    return Learner(Accelerator(), model, torch.optim.SGD(model.parameters(), lr=learning_rate), PAD, 1.0, **parts)


def rewards_of(groups: Sequence[Group]) -> list[tuple[float, ...]]:
    return [group.rewards for group in groups]


def gradient(learner: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in learner.parameters])


def settings(algorithm: AlgorithmName = "gpg", **changes: Any) -> TrainerConfig:
    defaults: dict[str, Any] = {"max_grad_norm": 1e9, "forward": "padded"}
    return TrainerConfig(algorithm=algorithm, **(defaults | changes))


def step(groups: Sequence[Group], config: TrainerConfig, learner: Learner | None = None) -> Mapping[str, float]:
    return update(learner or plain_learner(), groups, rewards_of(groups), config)


# Micro-batches.

LINEAR = settings("arpo-gpg")
# The second update is off-policy: its ratios are clipped, and its gradient is the one that is compared.
CLIPPED = settings("arpo", updates_per_rollout=2, loss=LossConfig(clip_low=0.05, clip_high=0.05))
EVERYTHING = settings(
    "arpo",
    updates_per_rollout=2,
    loss=LossConfig(ratio="segment-geometric", kl_weight=0.5, entropy_weight=0.1),
)


CRITIC = settings("ppo", updates_per_rollout=2, credit=CreditConfig(gae_lambda=0.9))


def compared_learner(config: TrainerConfig) -> Learner:
    """With a reference and a value head where they are needed, neither of which agrees with the model."""
    reference = Reference.of(model_of(1)) if config.loss.kl_weight else None
    if config.settings.baseline != "critic":
        return plain_learner(reference=reference)
    torch.manual_seed(0)
    return plain_learner(reference=reference, value_head=ValueHead(32, 1))


def test_the_splits_are_those_that_are_compared() -> None:
    rows = rows_of(eight_rows())
    assert sorted(len(row.tokens) for row in rows) == [7, 8, 9, 10, 11, 12, 13, 14]
    sizes = {most: [len(part) for part in micro_batches(rows, most, "padded")] for most in (10**6, 56, 1)}
    assert sizes == {10**6: [8], 56: [4, 4], 1: [1] * 8}
    assert [len(micro_batches(rows, most, "tree")) > 1 for most in (10**6, 30, 1)] == [False, True, True]


@pytest.mark.parametrize(
    "config", [LINEAR, CLIPPED, EVERYTHING, CRITIC], ids=["linear", "clipped", "everything", "critic"]
)
def test_micro_batches_and_forwards_change_no_gradient(config: TrainerConfig) -> None:
    groups = eight_rows()
    gradients: list[torch.Tensor] = []
    outcomes: list[Mapping[str, float]] = []
    for forward, most in [("padded", 10**6), ("padded", 56), ("padded", 1), ("tree", 10**6), ("tree", 30), ("tree", 1)]:
        learner = compared_learner(config)
        split = replace(config, forward=forward, micro_batch_tokens=most)  # type: ignore[arg-type]  # one of the two
        outcomes.append(step(groups, split, learner))
        gradients.append(gradient(learner))
    scale = float(gradients[0].abs().max())
    assert scale > 0.01
    for found in gradients[1:]:
        assert float((found - gradients[0]).abs().max()) <= 1e-6 * max(1.0, scale)
    for outcome in outcomes[1:]:
        assert outcome == pytest.approx(outcomes[0], abs=1e-5)
    if config.updates_per_rollout > 1:
        assert outcomes[0]["last/clip/fraction"] > 0


def test_a_random_forest_gives_the_padded_gradient() -> None:
    groups = sampled_by_model(MODEL, [random_tree(seed) for seed in (1, 2, 3)])
    gradients: list[torch.Tensor] = []
    for forward in FORWARD_NAMES:
        learner = plain_learner()
        step(groups, replace(LINEAR, forward=forward, micro_batch_tokens=40), learner)
        gradients.append(gradient(learner))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.0, atol=1e-6)


# What a step reports, and when there is none.


def test_one_update_is_on_policy() -> None:
    groups = eight_rows()
    learner = plain_learner()
    assert float(row_logprobs(learner.model, groups).abs().max()) < 1e-5
    outcome = step(groups, settings("grpo"), learner)
    assert outcome["clip/fraction"] == 0.0
    assert outcome["mismatch/max"] < 1e-5
    assert outcome["tokens/trained"] == 48.0  # leaves 36, t0d0 4 times 2, t1d0 4 times 1
    assert outcome["step_skipped"] == 0.0
    assert not any(name.startswith("last/") for name in outcome)
    assert float(row_logprobs(learner.model, groups).abs().max()) > 1e-3


def test_the_second_of_two_updates_is_off_policy() -> None:
    outcome = step(eight_rows(), settings("grpo", updates_per_rollout=2), plain_learner(2.0))
    assert outcome["clip/fraction"] == 0.0  # the first: its ratios are 1
    assert outcome["mismatch/max"] < 1e-5
    assert 0.0 < outcome["last/clip/fraction"] < 1.0
    assert outcome["last/mismatch/max"] > 0.1
    assert outcome["last/loss"] != pytest.approx(outcome["loss"])
    assert {"last/grad_norm", "grad_norm"} <= outcome.keys()


def test_ratios_compare_with_the_policy_before_the_first_update() -> None:
    # With nothing clipped, the second update's gradient is that of rho A: A log pi, each token weighted by how much
    # likelier the first update made it; importance_correction does the same for an algorithm without a ratio, but cuts
    # the weight at 2.
    groups = eight_rows()
    wide = LossConfig(surrogate="clipped", ratio="token", clip_low=1.0, clip_high=1e6)
    gradients: list[torch.Tensor] = []
    for loss in (wide, LossConfig(importance_correction=True)):
        learner = plain_learner(0.02)
        outcome = step(groups, settings("gpg", updates_per_rollout=2, loss=loss), learner)
        assert 0.01 < outcome["last/mismatch/max"] < math.log(2)
        gradients.append(gradient(learner))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.0, atol=1e-6)


MIXED = (1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("scale", "least"), [(1.0, 0.0), (2.0, -1.0), (0.9, 0.1)], ids=["01", "+-1", "floor"])
@pytest.mark.parametrize(
    ("rewards", "alpha"),
    [((MIXED, MIXED), 1.0), ((MIXED, (0.0,) * 4), 2.0), (((1.0,) * 4, MIXED), 2.0)],
    ids=["two mixed", "one all wrong", "one all right"],
)
def test_alpha_makes_up_for_groups_without_a_signal(
    rewards: tuple[Sequence[float], Sequence[float]], alpha: float, scale: float, least: float
) -> None:
    groups = [
        with_rewards(group, [least + scale * one for one in given])
        for group, given in zip(eight_rows(), rewards, strict=True)
    ]
    learner, plain = plain_learner(), plain_learner()
    outcome = step(groups, settings("gpg"), learner)
    assert outcome["correction"] == alpha
    step(groups, settings("gpg", credit=CreditConfig(correction="none")), plain)
    torch.testing.assert_close(gradient(learner), alpha * gradient(plain))


@pytest.mark.parametrize("algorithm", ["arpo-gpg", "gpg", "grpo", "dapo", "rloo", "cispo"])
def test_a_batch_without_a_signal_makes_no_step_although_there_is_momentum(algorithm: AlgorithmName) -> None:
    model = copy.deepcopy(MODEL)
    config = settings(algorithm, learning_rate=1e-2, warmup_steps=0)
    learner, _ = make_learner(model, PAD, 1.0, config)
    assert step(eight_rows(), config, learner)["step_skipped"] == 0.0
    before = weights(learner)
    silent = [with_rewards(group, (0.1,) * 4) for group in eight_rows()]
    outcome = step(silent, config, learner)
    assert outcome == {
        **{"loss": 0.0, "grad_norm": 0.0, "correction": 1.0, "tokens/trained": 0.0},
        **{"step_skipped": 1.0, "step_non_finite": 0.0},
    }
    assert torch.equal(weights(learner), before)


# Groups by their advantages.

TO_GO = CreditConfig(return_to_go=True)
MASKING = CreditConfig(mask_truncated=True)


def two_turns(uid: str, *paid: tuple[float, float]) -> Group:
    """Trajectories of two turns that share nothing, with what was paid for each turn."""
    turns = [turn(f"t{place}d0", None, (1 + place, 2), seen=(5,), reward=one) for place, (one, _) in enumerate(paid)]
    turns += [turn(f"t{place}d1", f"t{place}d0", (place,), reward=two) for place, (_, two) in enumerate(paid)]
    leaves = tuple(trajectory(f"t{place}d1", one + two) for place, (one, two) in enumerate(paid))
    return Group("toy", uid, "?", "!", (1, 2, 3), tuple(turns), leaves)


@pytest.mark.parametrize(
    ("beside", "alpha"),
    [((), 1.0), (((0.0, 0.0), (0.0, 1.0)), 1.0), (((0.0, 1.0), (0.0, 1.0)), 2.0)],
    ids=["alone", "beside a mixed one", "beside one without a signal"],
)
def test_equal_totals_that_were_paid_at_different_turns_are_a_signal(
    beside: tuple[tuple[float, float], ...], alpha: float
) -> None:
    # To go 1, 0 and 1, 1: advantages 0, -1/2 and 0, 1/2.
    groups = [two_turns("toy/0", (1.0, 0.0), (0.0, 1.0)), *([two_turns("toy/1", *beside)] if beside else [])]
    groups = sampled_by_model(MODEL, groups)
    learner, plain = plain_learner(), plain_learner()
    outcome = step(groups, settings("gpg", credit=TO_GO), learner)
    assert (outcome["step_skipped"], outcome["correction"]) == (0.0, alpha)
    step(groups, settings("gpg", credit=replace(TO_GO, correction="none")), plain)
    assert float(gradient(plain).abs().max()) > 0.01
    torch.testing.assert_close(gradient(learner), alpha * gradient(plain))
    # As whole trajectories they are alike.
    assert step(groups[:1], settings("gpg"))["step_skipped"] == 1.0


def cut_off(group: Group, *places: int) -> Group:
    """The same with some trajectories that reached a limit."""
    trajectories = [
        replace(one, stop_reason=StopReason.TOTAL_TOKEN_LIMIT) if place in places else one
        for place, one in enumerate(group.trajectories)
    ]
    return replace(group, trajectories=tuple(trajectories))


@pytest.mark.parametrize(
    ("second", "masked", "alpha"),
    [
        # All of a group without a signal: what is left has one.
        ((0.0, 0.0, 0.0, 0.0), ((), (0, 1, 2, 3)), 1.0),
        # All of a group with a signal: so has what is left.
        ((0.0, 1.0, 1.0, 0.0), ((), (0, 1, 2, 3)), 1.0),
        # Three of the first group are left, and two of the second, which has no signal: 5 / 3.
        ((0.0, 0.0, 0.0, 0.0), ((2,), (0, 1)), 5 / 3),
        # Of rewards 1, 0.5, 0.5 and 0 those with an advantage are masked: two of six teach nothing, 6 / 4.
        ((1.0, 0.5, 0.5, 0.0), ((), (0, 3)), 6 / 4),
    ],
)
def test_alpha_counts_trajectories_that_are_in_the_loss(
    second: tuple[float, ...], masked: tuple[tuple[int, ...], tuple[int, ...]], alpha: float
) -> None:
    first, other = eight_rows()
    groups = [cut_off(first, *masked[0]), cut_off(with_rewards(other, second), *masked[1])]
    learner, plain = plain_learner(), plain_learner()
    assert step(groups, settings("gpg", credit=MASKING), learner)["correction"] == pytest.approx(alpha)
    step(groups, settings("gpg", credit=replace(MASKING, correction="none")), plain)
    torch.testing.assert_close(gradient(learner), alpha * gradient(plain))
    if not alpha > 1.0:  # what is masked whole is not there
        alone = plain_learner()
        step([first], settings("gpg"), alone)
        torch.testing.assert_close(gradient(learner), gradient(alone))


def test_a_batch_all_of_whose_trajectories_are_masked_makes_no_step() -> None:
    groups = [cut_off(group, 0, 1, 2, 3) for group in eight_rows()]
    learner = plain_learner()
    before = weights(learner)
    assert step(groups, settings("gpg", credit=MASKING), learner)["step_skipped"] == 1.0
    assert torch.equal(weights(learner), before)
    assert step(groups, settings("gpg"), learner)["step_skipped"] == 0.0


# Numbers that are none.


def endless(slope: torch.Tensor) -> torch.Tensor:
    return slope * math.inf


@pytest.mark.parametrize("spoiled", ["weight", "gradient"])
def test_what_is_not_finite_leaves_the_weights_and_the_optimizer(spoiled: str) -> None:
    model = copy.deepcopy(MODEL)
    config = settings("gpg", learning_rate=1e-2, warmup_steps=0)
    learner, _ = make_learner(model, PAD, 1.0, config)
    step(eight_rows(), config, learner)
    first = learner.parameters[0]
    if spoiled == "weight":
        with torch.no_grad():
            first[1] = math.nan
    else:
        first.register_hook(endless)
    before, state = weights(learner), copy.deepcopy(learner.optimizer.state_dict())
    outcome = step(eight_rows(), config, learner)
    assert (outcome["step_skipped"], outcome["step_non_finite"], outcome["tokens/trained"]) == (1.0, 1.0, 0.0)
    assert not math.isfinite(outcome["grad_norm"])
    assert math.isfinite(outcome["loss"]) == (spoiled == "gradient")
    assert torch.equal(weights(learner).nan_to_num(), before.nan_to_num())
    for name, values in learner.optimizer.state_dict()["state"].items():
        assert values["step"] == state["state"][name]["step"] == 1
        assert torch.equal(values["exp_avg"], state["state"][name]["exp_avg"])


def test_a_critic_that_says_nonsense_is_no_batch_without_a_signal() -> None:
    config = settings("ppo")
    learner, _ = make_learner(copy.deepcopy(MODEL), PAD, 1.0, config)
    assert isinstance(learner.value_head, torch.nn.Linear)
    torch.nn.init.constant_(learner.value_head.weight, math.nan)
    outcome = step(eight_rows(), config, learner)
    assert (outcome["step_skipped"], outcome["step_non_finite"]) == (1.0, 1.0)


@pytest.mark.parametrize("good", [1, 2])
def test_the_updates_before_one_that_is_not_finite_stand(good: int, caplog: pytest.LogCaptureFixture) -> None:
    learner, undisturbed = plain_learner(0.02), plain_learner(0.02)
    passes = 0

    def spoil(slope: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1  # one an update: all rows are in one micro-batch
        return slope * math.nan if passes > good else slope

    learner.parameters[0].register_hook(spoil)
    expected = step(eight_rows(), settings("grpo", updates_per_rollout=good), undisturbed)
    outcome = step(eight_rows(), settings("grpo", updates_per_rollout=4), learner)
    assert passes == good + 1
    assert outcome == {**expected, "step_non_finite": 1.0}
    assert (expected["step_skipped"], expected["step_non_finite"]) == (0.0, 0.0)
    assert any(name.startswith("last/") for name in outcome) == (good > 1)
    assert torch.equal(weights(learner), weights(undisturbed))
    (message,) = caplog.messages
    assert message.startswith(f"update {good + 1} of 4: the loss is ")
    assert message.endswith("and the gradient's norm nan, expected finite numbers; those before it stand")


def test_bad_rewards_are_refused_before_anything_is_computed() -> None:
    group = three_leaves()
    with pytest.raises(ValueError, match="group toy/0: trajectory t1d1 has reward nan"):
        update(plain_learner(), [group], [[1.0, math.nan, 0.0]], settings())
    with pytest.raises(ValueError, match="group toy/0: it has no trajectory"):
        step([replace(group, turns=(), trajectories=())], settings())


# The parts of the loss.


def test_the_kl_term_pulls_towards_the_policy_of_the_start() -> None:
    groups = hardly_rewarded()
    for kind in ("k2", "k3"):
        away = model_of(1)
        learner = plain_learner(0.1, reference=Reference.of(away))
        config = settings("gpg", loss=LossConfig(kl=kind, kl_weight=1.0))
        distances = [step(groups, config, learner)["kl/mean"] for _ in range(12)]
        assert distances[-1] < 0.7 * distances[0]
        assert all(
            torch.equal(one, other) for one, other in zip(away.parameters(), model_of(1).parameters(), strict=True)
        )


def test_without_a_kl_term_no_reference_is_kept_and_with_one_it_is_the_policy_of_the_start() -> None:
    assert make_learner(copy.deepcopy(MODEL), PAD, 1.0, settings())[0].reference is None
    config = settings("gpg", learning_rate=1e-2, warmup_steps=0, loss=LossConfig(kl_weight=0.1))
    learner, _ = make_learner(copy.deepcopy(MODEL), PAD, 1.0, config)
    assert step(eight_rows(), config, learner)["kl/mean"] == pytest.approx(0.0, abs=1e-6)
    assert step(eight_rows(), config, learner)["kl/mean"] > 1e-4


def test_tokens_without_an_advantage_are_held_to_the_reference_as_well() -> None:
    groups = eight_rows()
    groups[1] = with_rewards(groups[1], (0.0,) * 4)
    plain = step(groups, settings("gpg"))
    held = step(groups, settings("gpg", loss=LossConfig(kl_weight=0.1)), plain_learner(reference=Reference.of(MODEL)))
    assert (plain["tokens/trained"], held["tokens/trained"]) == (20.0, 48.0)
    assert held["loss"] == pytest.approx(plain["loss"], abs=1e-6)  # the weights are those of the whole batch


def test_the_entropy_bonus_makes_the_policy_less_certain() -> None:
    learner = plain_learner(0.1)
    config = settings("gpg", loss=LossConfig(entropy_weight=1.0))
    found = [step(hardly_rewarded(), config, learner)["entropy/trained"] for _ in range(6)]
    assert found[-1] > found[0] + 0.05
    assert all(later > earlier for earlier, later in pairwise(found))


def test_the_critic_learns_what_is_paid() -> None:
    config = settings("ppo", learning_rate=1e-4, warmup_steps=0, loss=LossConfig(value_learning_rate=0.05))
    learner, _ = make_learner(copy.deepcopy(MODEL), PAD, 1.0, config)
    errors = [step(eight_rows(), config, learner)["value/squared_error"] for _ in range(25)]
    # At first it says 0: each of the 48 tokens' segments is off by its trajectory's reward; tokens of the trajectories
    # with rewards: 6 of reward 1, 2 of 0.5 (1 + 1), 9 and 7 of 1: (22 + 2 / 4) / 48
    assert errors[0] == pytest.approx(22.5 / 48)
    assert errors[-1] < 0.5 * errors[0]


def test_the_critics_head_and_the_model_are_both_trained_and_with_other_rates() -> None:
    config = settings("ppo", learning_rate=1e-4, warmup_steps=0, loss=LossConfig(value_learning_rate=0.05))
    learner, _ = make_learner(copy.deepcopy(MODEL), PAD, 1.0, config)
    head = learner.value_head
    assert head is not None
    before = weights(learner)
    step(eight_rows(), config, learner)
    moved = (weights(learner) - before).abs()
    size = sum(parameter.numel() for parameter in head.parameters())
    assert float(moved[:-size].max()) == pytest.approx(1e-4, rel=0.01)  # AdamW's first step is the rate itself
    assert float(moved[-size:].max()) == pytest.approx(0.05, rel=0.01)


def test_the_critic_of_a_model_in_half_precision_is_in_float32() -> None:
    config = settings("ppo", learning_rate=1e-3, warmup_steps=0)
    learner, _ = make_learner(copy.deepcopy(MODEL).to(torch.bfloat16), PAD, 1.0, config)
    outcome = step(eight_rows(), config, learner)
    assert outcome["value/squared_error"] == pytest.approx(22.5 / 48)
    kinds = {parameter.dtype for parameter in learner.parameters}
    assert kinds == {torch.bfloat16, torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in learner.parameters)


def test_a_critic_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.algorithm ppo has a critic, expected a learner with a value head"):
        step(eight_rows(), settings("ppo"))


# What a step knows of its rollout.


def test_the_greedy_trajectorys_reward_is_remaxs_baseline() -> None:
    groups = eight_rows()
    plain, compared = plain_learner(), plain_learner()
    step(
        [with_rewards(groups[0], (0.75, -0.25, -0.25, 0.25)), with_rewards(groups[1], (-1.0, 0.0, 0.0, -1.0))],
        settings("reinforce"),
        plain,
    )
    circumstances = Circumstances(greedy_rewards=(0.25, 1.0))
    update(compared, groups, rewards_of(groups), settings("remax"), circumstances)
    torch.testing.assert_close(gradient(compared), gradient(plain))


@pytest.mark.parametrize("greedy", [(), (1.0,), (1.0, math.nan)])
def test_remax_without_its_baseline_is_refused(greedy: tuple[float, ...]) -> None:
    groups = eight_rows()
    with pytest.raises(ValueError, match="greedy rewards are .*, expected a finite number for each of 2 groups"):
        update(plain_learner(), groups, rewards_of(groups), settings("remax"), Circumstances(greedy_rewards=greedy))


def test_dr_grpo_divides_by_the_most_tokens_of_a_trajectory() -> None:
    groups = eight_rows()
    norms = [
        update(plain_learner(), groups, rewards_of(groups), settings("dr_grpo"), Circumstances(most_tokens=most))
        for most in (100, 200)
    ]
    assert norms[0]["grad_norm"] == pytest.approx(2 * norms[1]["grad_norm"], rel=1e-4)


def test_markers_and_the_seed_reach_the_segments() -> None:
    # Off-policy, a segment's ratio depends on what is in it.
    groups = eight_rows()
    marking = Marking(("<a>",), lambda token: "<a>" if token == 4 else "x")

    def second(segments: SegmentConfig, **given: Any) -> float:
        config = settings(
            "grpo", updates_per_rollout=2, segments=segments, loss=LossConfig(ratio="segment-product", clip_high=9.0)
        )
        return update(plain_learner(), groups, rewards_of(groups), config, Circumstances(**given))["last/loss"]

    marker, random = SegmentConfig(kind="marker"), SegmentConfig(kind="random", mean_length=2.0)
    assert second(marker, marking=marking) != pytest.approx(second(SegmentConfig(kind="turn")), abs=1e-6)
    assert second(random, seed=(1,)) == second(random, seed=(1,))
    assert second(random, seed=(1,)) != pytest.approx(second(random, seed=(2,)), abs=1e-6)
    with pytest.raises(ValueError, match="need the environment's markers"):
        second(marker)
