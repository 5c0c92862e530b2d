"""Losses, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from forkgym.trainers.losses import clipped_loss, gpg_loss

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, 0.0]])
ADVANTAGES = torch.tensor([[1.0, 1.0, 9.0], [-2.0, 0.5, 9.0]])
MASK = torch.tensor([[True, True, False], [True, True, False]])


def test_gpg_loss_by_hand() -> None:
    # sum of A log pi: -1 - 2 + 1 - 2 = -4; over 4 tokens, times -1
    assert float(gpg_loss(LOGPROBS, ADVANTAGES, MASK, 4)) == pytest.approx(1.0)
    assert float(gpg_loss(LOGPROBS, ADVANTAGES, MASK, 4, correction=2.0)) == pytest.approx(2.0)


def test_gpg_gradient_is_minus_the_advantage_over_the_token_count() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    gpg_loss(logprobs, ADVANTAGES, MASK, 8).backward()
    expected = torch.tensor([[-0.125, -0.125, 0.0], [0.25, -0.0625, 0.0]])
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, expected)


def test_clipped_loss_by_hand() -> None:
    # ratios: 1.5, 0.5, -, 1.5, 0.5; clip 0.2 / 0.3
    old = LOGPROBS - torch.tensor([[math.log(1.5), math.log(0.5), 0.0], [math.log(1.5), math.log(0.5), 0.0]])
    # A = 1: min(1.5, 1.3) = 1.3; A = 1: min(0.5, 0.8) = 0.5; A = -2: min(-3, -2.6) = -3; A = 0.5: min(0.25, 0.4) = 0.25
    loss = clipped_loss(LOGPROBS - old, ADVANTAGES, MASK, 4, (0.2, 0.3))
    assert float(loss) == pytest.approx(-(1.3 + 0.5 - 3.0 + 0.25) / 4)


def test_on_policy_both_losses_have_the_same_gradient() -> None:
    gradients: list[torch.Tensor] = []
    for clips in (False, True):
        logprobs = LOGPROBS.clone().requires_grad_()
        loss = (
            clipped_loss(logprobs - LOGPROBS, ADVANTAGES, MASK, 4) if clips else gpg_loss(logprobs, ADVANTAGES, MASK, 4)
        )
        loss.backward()
        assert logprobs.grad is not None
        gradients.append(logprobs.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_is_outside_the_mask_cannot_spoil_the_gradient() -> None:
    logprobs = LOGPROBS.clone()
    logprobs[:, 2] = 1e4  # the ratio there would be infinite
    logprobs.requires_grad_()
    clipped_loss(logprobs - LOGPROBS, ADVANTAGES, MASK, 4).backward()
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[:, 2].tolist() == [0.0, 0.0]


def test_shapes_and_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="one shape"):
        gpg_loss(LOGPROBS, ADVANTAGES[:, :2], MASK, 4)
    with pytest.raises(ValueError, match="num_tokens is 0"):
        gpg_loss(LOGPROBS, ADVANTAGES, MASK, 0)
