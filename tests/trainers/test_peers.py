"""Our losses and advantages against the numbers of TRL and verl, which ``scripts/peer_numbers.py`` wrote down.

Ours come out of the whole chain: trees, rows, credit, padding, objective, by the algorithm's name. Where the peers
define the same thing, the numbers are the same. Where they do not, a test says which is right, and why.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from forkgym.trainers.algorithms import advantages
from forkgym.trainers.algorithms.advantages import deviation, group_correction
from forkgym.trainers.algorithms.config import CreditConfig, LossConfig, SegmentConfig, resolved
from forkgym.trainers.algorithms.credit import CreditRule, Paid, make_samples
from forkgym.trainers.algorithms.losses import kl_terms
from forkgym.trainers.algorithms.mismatch import importance_weights
from forkgym.trainers.algorithms.objective import FixedLogprobs, LossRule, objective
from forkgym.trainers.algorithms.segments import segment_begins
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.forward.measures import Measures
from forkgym.trainers.learner import make_learner
from forkgym.trainers.packing import make_row, pad
from forkgym.trainers.types import Group, Row, Sample, Trajectory, Turn
from forkgym.trainers.update import update
from tests.trainers.small_trees import trajectory, turn

PEERS: dict[str, Any] = json.loads((Path(__file__).parent / "peer_numbers.json").read_text(encoding="utf-8"))
INPUTS: dict[str, Any] = PEERS["inputs"]
TRL: dict[str, dict[str, Any]] = PEERS["trl"]
VERL: dict[str, Any] = PEERS["verl"]
MASK = torch.tensor(INPUTS["mask"], dtype=torch.bool)
PROMPT = 1  # tokens


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of our side: a row of the table, and what is changed in it."""

    algorithm: str
    credit: CreditConfig = CreditConfig()
    loss: LossConfig = LossConfig()


def grown_groups(logprobs: list[list[float]]) -> list[Group]:
    """The stored trajectories as trees: a turn ends where an observation of one token follows."""
    groups: list[Group] = []
    for number in sorted(set(INPUTS["groups"])):
        turns: list[Turn] = []
        leaves: list[Trajectory] = []
        for place in (place for place, group in enumerate(INPUTS["groups"]) if group == number):
            mask = INPUTS["mask"][place][: INPUTS["lengths"][place]]
            holes = [at for at, sampled in enumerate(mask) if not sampled]
            bounds = [-1, *holes, len(mask)]
            parent = None
            for depth, (before, end) in enumerate(pairwise(bounds)):
                uid, at_end = f"t{place}d{depth}", end == len(mask)
                reward = INPUTS["rewards"][place] if at_end else 0.0
                sampled = turn(uid, parent, [5] * (end - before - 1), seen=() if at_end else (6,), reward=reward)
                turns.append(with_logprobs(sampled, logprobs[place][before + 1 : end]))
                parent = uid
            assert parent is not None
            leaves.append(trajectory(parent, INPUTS["rewards"][place]))
        groups.append(Group("toy", f"toy/{number}", "?", "!", (1,) * PROMPT, tuple(turns), tuple(leaves)))
    return groups


def with_logprobs(sampled: Turn, logprobs: list[float]) -> Turn:
    """The turn with other log-probs."""
    return replace(sampled, logprobs=tuple(logprobs))


def samples_of(setting: Setting, sampled_with: str = "before") -> list[Sample]:
    """Rows with credit; ``sampled_with`` names the log-probs that the rollout has."""
    algorithm = resolved(setting.algorithm, SegmentConfig(), setting.credit, setting.loss)
    groups = grown_groups(INPUTS[sampled_with])
    rows_PG: list[list[Row]] = []
    paid: list[Paid] = []
    first = 0
    for group in groups:
        begins = segment_begins(group, algorithm.segments, SegmentConfig(), np.random.default_rng(0))
        rows_PG.append([make_row(group, one, begins) for one in group.trajectories])
        places = range(first, first + len(group.trajectories))
        values_G = [[0.0] * PROMPT + INPUTS["values"][place][: INPUTS["lengths"][place]] for place in places]
        paid.append(Paid(group.rewards, greedy=INPUTS["greedy"][first], values_G=values_G))
        first += len(group.trajectories)
    return make_samples(groups, rows_PG, paid, CreditRule(algorithm, setting.credit, INPUTS["most_tokens"]))


def with_prompt(rows: list[list[float]]) -> torch.Tensor:
    """Log-probs as a forward gives them."""
    return torch.cat([torch.zeros(len(rows), PROMPT), torch.tensor(rows)], dim=1)


def loss_and_gradient(setting: Setting, sampled_with: str = "before") -> tuple[float, torch.Tensor]:
    """Our loss of the stored batch, and its gradient to each token's log-prob."""
    algorithm = resolved(setting.algorithm, SegmentConfig(), setting.credit, setting.loss)
    batch = pad(samples_of(setting, sampled_with), torch.device("cpu"))
    logprobs_BT = with_prompt(INPUTS["logprobs"]).requires_grad_()
    fixed = FixedLogprobs(
        with_prompt(INPUTS["before"]), with_prompt(INPUTS["reference"]) if setting.loss.kl_weight else None
    )
    loss = objective(Measures(logprobs_BT), batch, fixed, LossRule(algorithm, setting.loss, correction=1.0)).loss
    (gradient,) = torch.autograd.grad(loss, logprobs_BT)
    return float(loss.detach()), gradient[:, PROMPT:]


def assert_close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    """The same but for float32's rounding."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)


def assert_same(setting: Setting, peer: dict[str, Any], sampled_with: str = "before") -> None:
    """The same loss and gradient."""
    loss, gradient = loss_and_gradient(setting, sampled_with)
    assert loss == pytest.approx(peer["loss"], abs=1e-6)
    assert_close(gradient, torch.tensor(peer["gradient"]))


def assert_other(setting: Setting, peer: dict[str, Any], sampled_with: str = "before") -> None:
    """Another gradient, beyond rounding."""
    _, gradient = loss_and_gradient(setting, sampled_with)
    assert (gradient - torch.tensor(peer["gradient"])).abs().max() > 1e-4


def test_the_numbers_say_what_made_them() -> None:
    assert PEERS["command"] == "python scripts/peer_numbers.py"
    assert {"trl", "verl", "torch", "transformers"} == set(PEERS["versions"])
    assert PEERS["versions"]["trl"].startswith("1.16.")


# TRL.

TRL_SETTINGS = {
    "grpo": Setting("grpo"),
    # A mean over the micro-batch's tokens: with one micro-batch, that over the batch's.
    "bnpo": Setting("grpo", loss=LossConfig(normalisation="tokens")),
    "dapo": Setting("dapo"),
    "dr_grpo": Setting("dr_grpo"),
    "cispo": Setting("cispo"),
    "gspo": Setting("gspo"),
    "gspo, wide": Setting("gspo", loss=LossConfig(clip_low=0.5, clip_high=0.5)),
    # TRL clips the ratio itself at delta; with delta above 1 + epsilon that is the dual clip.
    "grpo, delta 3": Setting("grpo", loss=LossConfig(dual_clip=3.0)),
    "grpo, k3": Setting("grpo", loss=LossConfig(kl_weight=0.1)),
    "grpo, two micro-batches": Setting("grpo"),
    "dapo, two micro-batches": Setting("dapo"),
}


@pytest.fixture
def trl_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL adds 1e-4 to a standard deviation."""
    monkeypatch.setattr(advantages, "DEVIATION_FLOOR", 1e-4)


@pytest.mark.usefixtures("trl_deviation")
@pytest.mark.parametrize("name", TRL_SETTINGS)
def test_trl_has_the_same_loss_and_gradient(name: str) -> None:
    assert_same(TRL_SETTINGS[name], TRL[name])


@pytest.mark.usefixtures("trl_deviation")
def test_trl_truncates_importance_weights_alike() -> None:
    assert_same(Setting("dapo"), TRL["dapo, token_truncate 2"], sampled_with="rollout")


@pytest.mark.usefixtures("trl_deviation")
@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_trl_has_the_same_group_advantages(name: str) -> None:
    ours = [sample.advantages[PROMPT] for sample in samples_of(Setting(name))]
    assert ours == pytest.approx(TRL[name]["advantages"], abs=1e-9)


def test_trl_adds_more_to_a_deviation() -> None:
    # The paper divides by the standard deviation itself (arXiv:2402.03300, section 4.1.2). Rewards 1, 0, 0 deviate by
    # 1 / sqrt(3) = 0.57735: with 1e-6 the advantage is 2 parts in a million too small, with TRL's 1e-4 170.
    by_the_paper = (1 - 1 / 3) * 3**0.5
    ours = samples_of(Setting("grpo"))[0].advantages[PROMPT]
    assert 1 - ours / by_the_paper == pytest.approx(1.7e-6, rel=0.05)
    assert 1 - TRL["grpo"]["advantages"][0] / by_the_paper == pytest.approx(1.7e-4, rel=0.05)
    assert deviation([1.0, 0.0, 0.0]) == pytest.approx(1 / 3**0.5 + 1e-6)


@pytest.mark.usefixtures("trl_deviation")
def test_a_mean_over_each_micro_batch_depends_on_how_the_batch_is_split() -> None:
    # TRL's bnpo: groups of 10 and 9 tokens, each its own mean, then the mean of the two: a token of the first weighs
    # 1/20, one of the second 1/18, instead of 1/19 each. Ours is a number of the whole batch, as DAPO defines it.
    whole, split = TRL["bnpo"], TRL["bnpo, two micro-batches"]
    factors = torch.tensor(split["gradient"]) / torch.tensor(whole["gradient"])
    in_first = factors[:3][torch.tensor(whole["gradient"])[:3] != 0]
    in_second = factors[3:][torch.tensor(whole["gradient"])[3:] != 0]
    tokens = [int(MASK[:3].sum()), int(MASK[3:].sum())]
    assert_close(in_first, torch.full_like(in_first, sum(tokens) / (2 * tokens[0])))
    assert_close(in_second, torch.full_like(in_second, sum(tokens) / (2 * tokens[1])))
    assert_other(TRL_SETTINGS["bnpo"], split)


@pytest.mark.usefixtures("trl_deviation")
def test_trl_weighs_the_kl_term_by_the_ratio_by_default() -> None:
    # The paper's objective (arXiv:2402.03300, equations 3 and 4) has no ratio on its KL term; TRL's
    # use_bias_correction_kl=False is that, and ours. Its default multiplies k3 by the ratio, as DeepSeek-V3.2
    # (arXiv:2512.02556) does, since the tokens were sampled before the update.
    setting = Setting("grpo", loss=LossConfig(kl_weight=0.1))
    assert_same(setting, TRL["grpo, k3"])
    assert_other(setting, TRL["grpo, k3, weighted"])


# verl.

MODES = {
    "token-mean": "tokens",
    "seq-mean-token-sum": "sum",
    "seq-mean-token-mean": "trajectories",
    "seq-mean-token-sum-norm": "length",
}


@pytest.mark.parametrize("mode", MODES)
def test_verl_normalises_alike(mode: str) -> None:
    kind: Any = MODES[mode]
    scaled = CreditConfig(divide_by_deviation=True, correction="none")
    assert_same(Setting("gpg", scaled, LossConfig(normalisation=kind)), VERL[f"loss/gpg, {mode}"])
    clipped = LossConfig(normalisation=kind, dual_clip=3.0)
    assert_same(Setting("grpo", loss=clipped), VERL[f"loss/vanilla, {mode}"])


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("vanilla, c 1e9", Setting("grpo", loss=LossConfig(normalisation="tokens"))),
        ("gspo", Setting("gspo", loss=LossConfig(clip_low=0.5, clip_high=0.5))),
        ("cispo, nothing clipped below", Setting("cispo")),
    ],
)
def test_verl_has_the_same_loss_and_gradient(name: str, setting: Setting) -> None:
    assert_same(setting, VERL[f"loss/{name}"])


def test_verl_weighs_tokens_alike_by_what_the_engine_sampled() -> None:
    weights = importance_weights(torch.tensor(INPUTS["before"]), torch.tensor(INPUTS["rollout"]))
    assert_close(weights[MASK], torch.tensor(VERL["importance_weights"])[MASK])
    clipped = Setting("grpo", loss=LossConfig(normalisation="tokens", dual_clip=3.0))
    assert_same(clipped, VERL["loss/vanilla, weighted"], sampled_with="rollout")
    linear = Setting("gpg", CreditConfig(divide_by_deviation=True, correction="none"))
    assert_same(linear, VERL["loss/gpg, weighted"], sampled_with="rollout")


def test_verl_bounds_bad_tokens_by_default() -> None:
    # PPO (arXiv:1707.06347) has no third bound; verl's c = 3 is that of arXiv:1912.09729, whose name is dual clip. The
    # table's rows are the papers'; trainer.loss.dual_clip 3 is verl's default.
    plain = Setting("grpo", loss=LossConfig(normalisation="tokens"))
    assert_other(plain, VERL["loss/vanilla, token-mean"])
    assert_same(plain, VERL["loss/vanilla, c 1e9"])


def test_verl_clips_cispo_below_by_default() -> None:
    # CISPO's paper sets the lower clip so wide that nothing is clipped below (arXiv:2506.13585, section 3.1). verl
    # takes PPO's 0.2 there unless told otherwise, which gives a token that became six times less likely five times the
    # weight. TRL has no lower clip at all. Ours is the paper's: ratios from 0 to 5.
    _, gradient = loss_and_gradient(Setting("cispo"))
    found = torch.tensor(VERL["loss/cispo"]["gradient"])
    ratios = (torch.tensor(INPUTS["logprobs"]) - torch.tensor(INPUTS["before"])).exp()
    below = MASK & (ratios < 0.8)
    assert int(below.sum()) > 1
    assert_close(gradient[~below], found[~below])
    assert_close(found[below] / gradient[below], 0.8 / ratios[below])


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("grpo", Setting("grpo")),
        ("dr_grpo", Setting("dr_grpo")),
        ("rloo", Setting("rloo")),
        ("remax", Setting("remax")),
    ],
)
def test_verl_has_the_same_advantages(name: str, setting: Setting) -> None:
    ours = pad(samples_of(setting), torch.device("cpu")).advantages_BT[:, PROMPT:]
    assert_close(ours, torch.tensor(VERL[f"advantages/{name}"]))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("gae", Setting("ppo", CreditConfig(gae_lambda=INPUTS["gae_lambda"]))),
        ("reinforce_plus_plus", Setting("reinforce")),
    ],
)
def test_verl_whitens_over_the_batch_what_we_leave(name: str, setting: Setting) -> None:
    # Neither Schulman et al. (arXiv:1506.02438) nor Williams subtracts the batch's mean. REINFORCE++
    # (arXiv:2501.03262) does; it has no row of the table. Beneath the whitening the numbers are the same.
    batch = pad(samples_of(setting), torch.device("cpu"))
    ours = batch.targets_BT if name == "gae" else batch.advantages_BT
    assert_close(ours[:, PROMPT:][MASK], torch.tensor(VERL[f"returns/{name}"])[MASK])
    plain = batch.advantages_BT[:, PROMPT:][MASK]
    white = torch.tensor(VERL[f"advantages/{name}"])[MASK]
    assert_close((plain - plain.mean()) / plain.std(), white, atol=1e-5)
    assert (plain - white).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_verl_estimates_the_divergence_alike(kind: Any) -> None:
    ours = kl_terms(torch.tensor(INPUTS["logprobs"]), torch.tensor(INPUTS["reference"]), kind)
    assert_close(ours[MASK], torch.tensor(VERL[f"kl/{kind}"])[MASK])


# Accurate gradient estimation: alpha = B / (B - M) with M the samples of groups with equal rewards (arXiv:2504.02546).
# verl takes alpha = B / (samples whose reward is not 0), a count of right answers in the place of one of groups that
# tell right from wrong: with everything learnable it multiplies the step by 4, and where rewards are never 0 by 1.

ALPHAS = {  # by the paper, by verl
    "two mixed": (1.0, 4.0),
    "mixed and wrong": (2.0, 8.0),
    "mixed and right": (2.0, 1.6),
    "mixed and wrong, -1 or 1": (2.0, 1.0),
    "mixed and wrong, floor": (2.0, 1.0),
}


def groups_of_four(rewards: list[float]) -> list[Group]:
    """Trees of four answers of one token each."""
    groups: list[Group] = []
    for first in range(0, len(rewards), 4):
        paid = rewards[first : first + 4]
        turns = tuple(turn(f"t{place}d0", None, (place + 2,), reward=reward) for place, reward in enumerate(paid))
        leaves = tuple(trajectory(f"t{place}d0", reward) for place, reward in enumerate(paid))
        groups.append(Group("toy", f"toy/{first}", "?", "!", (1,), turns, leaves))
    return groups


@pytest.mark.parametrize("name", ALPHAS)
def test_accurate_gradient_estimation_counts_groups_with_a_signal(name: str) -> None:
    by_the_paper, by_verl = ALPHAS[name]
    rewards: list[float] = INPUTS["gpg_rewards"][name]
    groups = groups_of_four(rewards)
    valid = sum(len(group.trajectories) for group in groups if group.is_valid)
    assert group_correction(valid, len(rewards)) == by_the_paper
    found = VERL[f"advantages/gpg, {name}"][0] / (rewards[0] - statistics.fmean(rewards[:4]))
    assert found == pytest.approx(by_verl)


@pytest.mark.parametrize("name", ALPHAS)
def test_an_update_makes_up_for_groups_without_a_signal(name: str) -> None:
    groups = groups_of_four(INPUTS["gpg_rewards"][name])
    found = {kind: first_gradient(groups, kind) for kind in ("rescale", "damp", "none")}
    alpha = ALPHAS[name][0]
    assert [correction for correction, _ in found.values()] == [alpha, 1 / alpha, 1.0]
    plain = found["none"][1]
    assert float(plain.abs().max()) > 0
    assert_close(found["rescale"][1], alpha * plain)
    assert_close(found["damp"][1], plain / alpha)


def first_gradient(groups: list[Group], correction: Any) -> tuple[float, torch.Tensor]:
    """The correction of one update of a tiny model by GPG, and the gradient that it was taken with."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    config = TrainerConfig(
        algorithm="gpg", forward="padded", max_grad_norm=1e9, credit=CreditConfig(correction=correction)
    )
    learner, _ = make_learner(model, 0, 1.0, config)
    with torch.no_grad():  # on-policy: otherwise importance weights come into it
        context = torch.tensor([[1]], device=learner.accelerator.device)
        logprobs = model(context).logits[0, -1].log_softmax(-1).tolist()
    groups = [on_policy(group, logprobs) for group in groups]
    outcome = update(learner, groups, [group.rewards for group in groups], config)
    gradient = torch.cat([parameter.grad.flatten() for parameter in learner.parameters if parameter.grad is not None])
    return outcome["correction"], gradient.cpu()


def on_policy(group: Group, logprobs: list[float]) -> Group:
    """The group as a model with these log-probs after the prompt sampled it."""
    turns = tuple(with_logprobs(one, [logprobs[token] for token in one.tokens]) for one in group.turns)
    return replace(group, turns=turns)
