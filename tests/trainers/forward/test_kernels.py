"""Attention pieces against PyTorch's own attention."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forkgym.trainers.forward.kernels import BLOCK, MOST_FILLED, FlashKernel, Kernel, PlainKernel, Shape, kernel_for

KERNELS: list[Kernel] = [FlashKernel(), PlainKernel()]


def inputs(value_size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, value_size))
    query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["all", "causal", "masked"])
def test_a_kernel_gives_attention_and_its_gradient(kernel: Kernel, kind: str) -> None:
    query, key, value = inputs()
    if kind == "causal":
        key, value = (tensor[:, :, :5].detach().requires_grad_() for tensor in (key, value))
    mask = torch.zeros(5, 7).masked_fill_(torch.ones(5, 7, dtype=torch.bool).triu(3), -torch.inf)
    shape = Shape(kind == "causal", mask if kind == "masked" else None, scale=0.3)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=shape.mask_QK, is_causal=shape.causal, scale=0.3, enable_gqa=True
    )
    plain = (query.detach(), key.detach(), value.detach())
    outputs, normalisers = kernel.forward(plain, shape)
    torch.testing.assert_close(outputs, expected.detach(), atol=1e-6, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    found = kernel.backward(upstream, plain, (outputs, normalisers), shape)
    for one, other in zip(found, torch.autograd.grad(expected, (query, key, value), upstream), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [BLOCK - MOST_FILLED - 1, BLOCK - MOST_FILLED, BLOCK - 1, BLOCK, 2 * BLOCK - 1])
def test_filling_up_a_block_changes_nothing(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((2, heads, length, 8), generator=generator) for heads in (4, 2, 2))
    shape = Shape(causal=True, mask_QK=None, scale=0.3)
    found, expected = (kernel.forward((query, key, value), shape) for kernel in KERNELS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_normalisers_are_those_of_the_softmax(kernel: Kernel) -> None:
    # Scores 0.5 * (2 * 1, 2 * 3) = (1, 3): log(e + e^3) = 3.126928
    query = torch.tensor([2.0]).view(1, 1, 1, 1)
    key = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    value = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    outputs, normalisers = kernel.forward((query, key, value), Shape(causal=False, mask_QK=None, scale=0.5))
    assert normalisers.item() == pytest.approx(3.126928)
    assert outputs.item() == pytest.approx(0.880797)  # 1 / (1 + e^-2)


def test_the_plain_kernel_is_for_values_of_another_size() -> None:
    query, _, value = inputs()
    assert isinstance(kernel_for(query, value), FlashKernel)
    query, key, value = inputs(value_size=3)
    assert isinstance(kernel_for(query, value), PlainKernel)
    outputs, _ = PlainKernel().forward((query, key, value), Shape(causal=False, mask_QK=None, scale=1.0))
    assert outputs.shape == (2, 4, 5, 3)
