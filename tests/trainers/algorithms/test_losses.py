"""Losses, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from forkgym.trainers.algorithms.losses import (
    clipped_terms,
    gradient_terms,
    kl_terms,
    log_ratios,
    truncated_terms,
    weighted_sum,
)
from forkgym.trainers.algorithms.table import Ratio

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, -2.0]])
ADVANTAGES = torch.tensor([[1.0, 1.0, 9.0], [-2.0, 0.5, 9.0]])
MASK = torch.tensor([[True, True, False], [True, True, False]])
# One row: a segment of two tokens, an observation, the rest of it, a segment of one token.
SEGMENTS = torch.tensor([[-1, 0, 0, -1, 0, 1]])
GAPS = torch.tensor([[7.0, 0.1, 0.3, 7.0, -0.1, 0.5]])


def ratios_of(*values: float) -> torch.Tensor:
    return torch.tensor([values]).log()


def gradient_of(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """The gradient of a sum of terms."""
    leaf = at.clone().requires_grad_()
    function(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_gradient_terms_by_hand() -> None:
    # A log pi: 1 * -1, 1 * -2, 9 * -3; -2 * -0.5, 0.5 * -4, 9 * -2
    assert gradient_terms(LOGPROBS, ADVANTAGES).tolist() == [[-1.0, -2.0, -27.0], [1.0, -2.0, -18.0]]


def test_the_gradient_of_gradient_terms_is_the_advantage_and_none_flows_into_it() -> None:
    assert torch.equal(gradient_of(lambda logprobs: gradient_terms(logprobs, ADVANTAGES), LOGPROBS), ADVANTAGES)
    advantages = ADVANTAGES.clone().requires_grad_()
    assert not gradient_terms(LOGPROBS, advantages).requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "slope"),
    [  # clip 0.2 / 0.3; the slope is d term / d log rho
        (1.5, 1.0, 1.3, 0.0),  # min(1.5, 1.3)
        (1.5, -2.0, -3.0, -3.0),  # min(-3, -2.6): what is bad and grew is pushed back
        (0.5, 1.0, 0.5, 0.5),  # min(0.5, 0.8): what is good and fell is pushed up
        (0.5, -2.0, -1.6, 0.0),  # min(-1, -1.6)
        (1.25, 1.0, 1.25, 1.25),  # within 1.3, though not within 1.2
        (0.75, -1.0, -0.8, 0.0),  # not within 0.8, though within 0.7
        (1.0, -2.0, -2.0, -2.0),
    ],
)
def test_clipped_terms_by_hand(ratio: float, advantage: float, term: float, slope: float) -> None:
    def terms(log_ratios_BT: torch.Tensor) -> torch.Tensor:
        return clipped_terms(log_ratios_BT, torch.tensor([[advantage]]), (0.2, 0.3))

    assert float(terms(ratios_of(ratio))) == pytest.approx(term)
    assert float(gradient_of(terms, ratios_of(ratio))) == pytest.approx(slope)


def test_the_dual_clip_bounds_what_a_bad_token_costs() -> None:
    def terms(log_ratios_BT: torch.Tensor) -> torch.Tensor:
        # advantages -2, -2, 2; c = 3
        return clipped_terms(log_ratios_BT, torch.tensor([[-2.0, -2.0, 2.0]]), dual_clip=3.0)

    # -2 * 10 = -20, but at least 3 * -2 = -6; -2 * 2 = -4 is above that; a good token is clipped at 1.2 as ever
    assert terms(ratios_of(10.0, 2.0, 10.0)).tolist() == [pytest.approx([-6.0, -4.0, 2.4])]
    assert gradient_of(terms, ratios_of(10.0, 2.0, 10.0)).tolist() == [pytest.approx([0.0, -4.0, 0.0])]
    unbounded = clipped_terms(ratios_of(10.0), torch.tensor([[-2.0]]))
    assert float(unbounded) == pytest.approx(-20.0)


@pytest.mark.parametrize("log_ratio", [25.0, 100.0, 1e4])
def test_a_ratio_that_overflows_spoils_no_gradient(log_ratio: float) -> None:
    # A product over a thousand tokens, each of which is a tenth likelier, is exp(95): no float32.
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    at = torch.tensor([[log_ratio, log_ratio, -log_ratio, -log_ratio]])
    for dual_clip in (None, 3.0):
        slope = gradient_of(partial(clipped_terms, advantages_BT=advantages, dual_clip=dual_clip), at)
        assert slope.tolist() == [pytest.approx([0.0, 0.0, 0.0, 0.0], abs=1e-10)]
    # 1.2, the largest ratio times -1 or three times -1, what is left of a good token, 0.8 times -1
    assert clipped_terms(at, advantages, dual_clip=3.0).tolist() == [pytest.approx([1.2, -3.0, 0.0, -0.8], abs=1e-6)]
    assert float(clipped_terms(at, advantages)[0, 1]) == pytest.approx(-math.exp(20))
    assert torch.isfinite(truncated_terms(torch.full((1, 4), -1.0), at, advantages)).all()


def test_truncated_terms_keep_a_clipped_tokens_gradient() -> None:
    log_ratios_BT = ratios_of(9.0, 0.01, 2.0)
    advantages, logprobs = torch.tensor([[2.0, -1.0, 1.0]]), torch.tensor([[-1.0, -2.0, -3.0]])
    # weights: 9 cut to 5; 0.01 not cut below, as MiniMax has it; 2
    terms = truncated_terms(logprobs, log_ratios_BT, advantages)
    assert terms.tolist() == [pytest.approx([5 * 2 * -1, 0.01 * -1 * -2, 2 * 1 * -3])]
    slope = gradient_of(lambda leaf: truncated_terms(leaf, log_ratios_BT, advantages), logprobs)
    assert slope.tolist() == [pytest.approx([10.0, -0.01, 2.0])]
    low = truncated_terms(logprobs, log_ratios_BT, advantages, (0.2, 0.28))
    assert low.tolist() == [pytest.approx([1.28 * 2 * -1, 0.8 * -1 * -2, 1.28 * 1 * -3])]
    moving = log_ratios_BT.clone().requires_grad_()
    assert not truncated_terms(logprobs, moving, advantages).requires_grad


@pytest.mark.parametrize(
    ("kind", "ratios", "shares"),
    [
        ("token", [0, 0.1, 0.3, 0, -0.1, 0.5], [0, 1, 1, 0, 1, 1]),
        # segment 0: 0.1 + 0.3 - 0.1 = 0.3 over 3 tokens; segment 1: 0.5 over 1
        ("segment-product", [0, 0.3, 0.3, 0, 0.3, 0.5], [0, 1 / 3, 1 / 3, 0, 1 / 3, 1]),
        ("segment-geometric", [0, 0.1, 0.1, 0, 0.1, 0.5], [0, 1, 1, 0, 1, 1]),
        # all four: 0.8, in the mean 0.2
        ("sequence-product", [0, 0.8, 0.8, 0, 0.8, 0.8], [0, 0.25, 0.25, 0, 0.25, 0.25]),
        ("sequence-geometric", [0, 0.2, 0.2, 0, 0.2, 0.2], [0, 1, 1, 0, 1, 1]),
    ],
)
def test_log_ratios_by_hand(kind: Ratio, ratios: list[float], shares: list[float]) -> None:
    found, found_shares = log_ratios(GAPS, torch.zeros_like(GAPS), SEGMENTS, kind)
    torch.testing.assert_close(found, torch.tensor([ratios], dtype=torch.float))
    torch.testing.assert_close(found_shares, torch.tensor([shares], dtype=torch.float))


KINDS: tuple[Ratio, ...] = (
    "token",
    "segment-product",
    "segment-geometric",
    "sequence-product",
    "sequence-geometric",
)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_mix(kind: Ratio) -> None:
    # A second row whose segments have the same numbers, and a third one without a sampled token.
    segments = torch.cat([SEGMENTS, torch.tensor([[0, 1, -1, -1, 2, 2]]), torch.full((1, 6), -1)])
    gaps = torch.cat([GAPS, torch.tensor([[0.2, -0.4, 7.0, 7.0, 0.6, 0.2]]), torch.full((1, 6), 7.0)])
    together, shares = log_ratios(gaps, torch.zeros_like(gaps), segments, kind)
    for row in range(3):
        one = slice(row, row + 1)
        alone, share = log_ratios(gaps[one], torch.zeros_like(gaps[one]), segments[one], kind)
        torch.testing.assert_close(together[one], alone)
        torch.testing.assert_close(shares[one], share)
    assert together[2].tolist() == shares[2].tolist() == [0.0] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_every_ratio_has_the_gradient_of_the_log_prob(kind: Ratio) -> None:
    # One advantage a segment for the segments' ratios, one a row for the sequences'; where a token's advantage were its
    # own, the first token's gradient would hold the others' advantages.
    advantages = torch.tensor([[0.0, 2.0, 2.0, 0.0, 2.0, 2.0 if kind.startswith("sequence") else -0.5]])
    old = torch.full((1, 6), -1.0)

    def clipped(logprobs: torch.Tensor) -> torch.Tensor:
        ratios, shares = log_ratios(logprobs, old, SEGMENTS, kind)
        return shares * clipped_terms(ratios, advantages)

    def truncated(logprobs: torch.Tensor) -> torch.Tensor:
        ratios, _ = log_ratios(logprobs, old, SEGMENTS, kind)
        return truncated_terms(logprobs, ratios, advantages)

    torch.testing.assert_close(gradient_of(clipped, old), advantages)
    torch.testing.assert_close(gradient_of(truncated, old), advantages)


def test_a_product_and_a_geometric_mean_are_clipped_at_other_gaps() -> None:
    # Each of four tokens is exp(0.1) likelier: geometric mean 1.105, within 1.2; product exp(0.4) = 1.492, outside
    logprobs, old = torch.full((1, 4), -0.9), torch.full((1, 4), -1.0)
    segments, advantages = torch.zeros((1, 4), dtype=torch.long), torch.ones((1, 4))

    def terms(kind: Ratio) -> torch.Tensor:
        ratios, shares = log_ratios(logprobs, old, segments, kind)
        return (shares * clipped_terms(ratios, advantages)).sum()

    assert float(terms("segment-product")) == pytest.approx(1.2)  # the segment's one term
    assert float(terms("segment-geometric")) == pytest.approx(4 * math.exp(0.1))


def exponents(kind: Ratio, logprobs: torch.Tensor) -> torch.Tensor:
    return log_ratios(logprobs, torch.zeros(1, 6), SEGMENTS, kind)[0].exp()


def test_ratios_have_no_gradient_into_the_old_policy_and_none_outside_segments() -> None:
    old = torch.full((1, 6), -1.0, requires_grad=True)
    assert not log_ratios(torch.zeros(1, 6), old, SEGMENTS, "token")[0].requires_grad
    wild = GAPS.clone()
    wild[0, 0] = 1e4  # exp of it is infinite, and 0 times that would be nan
    for kind in KINDS:
        slope = gradient_of(partial(exponents, kind), wild)
        assert torch.isfinite(slope).all()
        assert slope[0, [0, 3]].tolist() == [0.0, 0.0]


def test_kl_estimates_by_hand() -> None:
    logprobs, reference = torch.tensor([[0.6, 0.1]]).log(), torch.tensor([[0.3, 0.4]]).log()
    # d = log 2 and -log 4
    assert kl_terms(logprobs, reference, "k1").tolist() == [pytest.approx([math.log(2), -math.log(4)])]
    assert kl_terms(logprobs, reference, "k2").tolist() == [pytest.approx([math.log(2) ** 2 / 2, math.log(4) ** 2 / 2])]
    # exp(-d) - 1 + d = 1/2 - 1 + log 2 and 4 - 1 - log 4
    assert kl_terms(logprobs, reference, "k3").tolist() == [pytest.approx([math.log(2) - 0.5, 3 - math.log(4)])]
    assert not kl_terms(logprobs, reference.requires_grad_(), "k3").requires_grad


def enumerated(kind: str) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """On three tokens: the estimator's mean, the mean of its gradient, and those of KL(pi || ref) and KL(ref || pi)."""
    logits = torch.tensor([0.3, -0.8, 0.1], dtype=torch.double, requires_grad=True)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.double).log()

    def slope_of(value: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(value, logits, retain_graph=True)
        return slope

    logprobs = logits.log_softmax(0)
    policy = logprobs.detach().exp()  # what samples the tokens: no gradient goes through it
    terms = kl_terms(logprobs[None], reference[None], kind)[0]  # type: ignore[arg-type]  # one of the three
    forward = (logprobs.exp() * (logprobs - reference)).sum()
    backward = (reference.exp() * (reference - logprobs)).sum()
    mean = (policy * terms).sum()
    return mean.item(), slope_of(mean), slope_of(forward), slope_of(backward)


def test_kl_estimates_on_a_distribution_that_can_be_enumerated() -> None:
    logits = torch.tensor([0.3, -0.8, 0.1], dtype=torch.double)
    policy, reference = logits.softmax(0), torch.tensor([0.5, 0.2, 0.3], dtype=torch.double)
    divergence = float((policy * (policy / reference).log()).sum())
    found = {kind: enumerated(kind) for kind in ("k1", "k2", "k3")}
    assert found["k1"][0] == pytest.approx(divergence, abs=1e-12)
    assert found["k3"][0] == pytest.approx(divergence, abs=1e-12)
    assert abs(found["k2"][0] - divergence) > 1e-4  # biased in value
    _, of_k1, forward, backward = found["k1"]
    torch.testing.assert_close(of_k1, forward)
    torch.testing.assert_close(found["k2"][1], forward)
    torch.testing.assert_close(found["k3"][1], backward)
    assert float((forward - backward).abs().max()) > 1e-3  # so that the two claims differ


def test_the_gradient_of_each_kl_estimate_by_hand() -> None:
    gaps, zero = torch.tensor([[math.log(2), -math.log(4)]]), torch.zeros(1, 2)
    # d, also for k1, which has k2's
    assert torch.equal(gradient_of(partial(kl_terms, reference_BT=zero, kind="k1"), gaps), gaps)
    assert torch.equal(gradient_of(partial(kl_terms, reference_BT=zero, kind="k2"), gaps), gaps)
    # 1 - exp(-d)
    slope = gradient_of(partial(kl_terms, reference_BT=zero, kind="k3"), gaps)
    assert slope.tolist() == [pytest.approx([0.5, -3.0])]


def test_a_token_that_the_reference_finds_far_likelier_does_not_overflow() -> None:
    gaps, zero = torch.tensor([[-19.0, -21.0, -100.0, 100.0]]), torch.zeros(1, 4)
    largest = math.exp(20) - 1 - 20
    assert kl_terms(gaps, zero, "k3").tolist() == [pytest.approx([math.exp(19) - 20, largest, largest, 99.0])]
    # 1 - exp(-d), and nothing beyond -20; what the reference finds less likely is held in full
    slope = gradient_of(partial(kl_terms, reference_BT=zero, kind="k3"), gaps)
    assert slope.tolist() == [pytest.approx([1 - math.exp(19), 0.0, 0.0, 1.0])]


def test_weighted_sum_by_hand() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]])
    # 0.5 * (1 + 2) + 0.25 * (3 + 4)
    terms = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 99.0]])
    assert float(weighted_sum(terms, weights, MASK)) == pytest.approx(3.25)
    moving = weights.clone().requires_grad_()
    assert not weighted_sum(terms, moving, MASK).requires_grad


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_what_is_outside_the_mask_cannot_spoil_the_sum_or_its_gradient(wild: float) -> None:
    terms = torch.tensor([[1.0, 2.0, wild], [3.0, 4.0, wild]])
    assert float(weighted_sum(terms, torch.ones(2, 3), MASK)) == 10.0
    slope = gradient_of(lambda leaf: weighted_sum(leaf, torch.ones(2, 3), MASK), terms)
    assert slope.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]


def test_what_is_wild_inside_the_mask_is_not_hidden() -> None:
    terms = torch.tensor([[1.0, math.nan, 0.0], [3.0, 4.0, 0.0]])
    assert math.isnan(float(weighted_sum(terms, torch.ones(2, 3), MASK)))


def test_shapes_and_names_are_checked() -> None:
    short = ADVANTAGES[:, :2]
    for call in (
        lambda: gradient_terms(LOGPROBS, short),
        lambda: clipped_terms(LOGPROBS, short),
        lambda: truncated_terms(LOGPROBS, LOGPROBS, short),
        lambda: kl_terms(LOGPROBS, short, "k3"),
        lambda: log_ratios(LOGPROBS, short, MASK.long(), "token"),
        lambda: weighted_sum(LOGPROBS, short, MASK),
    ):
        with pytest.raises(ValueError, match=r"one shape, got \[\(2, 2\), \(2, 3\)\]"):
            call()
    with pytest.raises(ValueError, match="KL estimator 'k4': expected k1, k2 or k3"):
        kl_terms(LOGPROBS, LOGPROBS, "k4")  # type: ignore[arg-type]  # that is the test
    for kind in ("none", "segment", "turn-product", "segment-median"):
        with pytest.raises(ValueError, match=f"ratio '{kind}': expected token"):
            log_ratios(LOGPROBS, LOGPROBS, MASK.long() - 1, kind)  # type: ignore[arg-type]  # that is the test
