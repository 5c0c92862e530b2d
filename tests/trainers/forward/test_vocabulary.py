"""Log-probs and entropies by parts of the vocabulary projection, against all of it at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forkgym.trainers.forward import vocabulary
from forkgym.trainers.forward.measures import Entropies, ForwardSettings
from forkgym.trainers.forward.vocabulary import Projection, blocks, measure_states, sampled_measures

TOKENS, HIDDEN, WORDS = 23, 6, 40


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(TOKENS, HIDDEN, generator=generator, requires_grad=True)
    weight_VH = torch.randn(WORDS, HIDDEN, generator=generator, requires_grad=True)
    bias_V = torch.randn(WORDS, generator=generator, requires_grad=True)
    return hidden_NH, weight_VH, bias_V, torch.randint(WORDS, (TOKENS,), generator=generator)


def test_two_words_by_hand() -> None:
    # Logits (log 3, 0) at temperature 1: probabilities 3/4 and 1/4, entropy log 4 - 3/4 log 3.
    projection = Projection(torch.tensor([[math.log(3)], [0.0]]))
    settings = ForwardSettings(entropies=Entropies.DETACHED)
    logprobs, entropies = sampled_measures(torch.ones(2, 1), torch.tensor([0, 1]), projection, settings)
    assert logprobs.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 4)])
    assert entropies is not None
    assert entropies.tolist() == pytest.approx([math.log(4) - 0.75 * math.log(3)] * 2)
    # Temperature 2: logits (log 3) / 2, so sqrt 3 to 1.
    logprobs, _ = sampled_measures(torch.ones(1, 1), torch.tensor([1]), projection, ForwardSettings(temperature=2))
    assert logprobs.tolist() == pytest.approx([-math.log(1 + math.sqrt(3))])


@pytest.mark.parametrize("chunk_logits", [1, 3 * WORDS, 2**24])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (0.5, 3.0)])
def test_the_gradient_is_that_of_all_logits_at_once(chunk_logits: int, scale: float, cap: float | None) -> None:
    hidden_NH, weight_VH, bias_V, targets_N = inputs()
    logits_NV = (hidden_NH @ weight_VH.T + bias_V) * scale
    if cap is not None:
        logits_NV = (logits_NV / cap).tanh() * cap
    logs_NV = (logits_NV / 0.7).log_softmax(1)
    expected = logs_NV[torch.arange(TOKENS), targets_N], -(logs_NV.exp() * logs_NV).sum(1)
    settings = ForwardSettings(0.7, Entropies.WITH_GRADIENT, chunk_logits=chunk_logits)
    found = sampled_measures(hidden_NH, targets_N, Projection(weight_VH, bias_V, scale, cap), settings)
    weights = [torch.randn(TOKENS, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    losses = list[torch.Tensor]()
    for measures in (expected, found):
        assert measures[1] is not None
        losses.append((measures[0] * weights[0] + measures[1] * weights[1]).sum())
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    parameters = (hidden_NH, weight_VH, bias_V)
    wanted, given = (torch.autograd.grad(loss, parameters) for loss in losses)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_detached_entropies_have_no_gradient_and_change_none() -> None:
    hidden_NH, weight_VH, _, targets_N = inputs()
    found = list[tuple[torch.Tensor, ...]]()
    for entropies in (Entropies.NO, Entropies.DETACHED):
        logprobs_N, entropies_N = sampled_measures(
            hidden_NH, targets_N, Projection(weight_VH), ForwardSettings(entropies=entropies)
        )
        assert entropies_N is None or not entropies_N.requires_grad
        found.append(torch.autograd.grad(logprobs_N.sum(), (hidden_NH, weight_VH)))
    assert entropies_N is not None
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_frozen_projection_gets_no_gradient() -> None:
    hidden_NH, weight_VH, _, targets_N = inputs()
    logprobs_N, _ = sampled_measures(hidden_NH, targets_N, Projection(weight_VH.detach()), ForwardSettings())
    logprobs_N.sum().backward()
    assert hidden_NH.grad is not None
    assert weight_VH.grad is None


class Largest(TorchDispatchMode):
    """Remembers the most elements of a float32 tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result: Any = func(*args, **(kwargs or {}))
        tensors: list[Any] = [result] if isinstance(result, torch.Tensor) else list(result or ())
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("entropies", list(Entropies))
def test_no_more_logits_exist_than_a_chunk_has(entropies: Entropies) -> None:
    tokens, words, hidden = 256, 1000, 4
    hidden_NH = torch.randn(tokens, hidden, requires_grad=True)
    weight_VH = torch.randn(words, hidden, requires_grad=True)
    targets_N = torch.randint(words, (tokens,))
    for rows in (8, tokens):
        with Largest() as largest:
            settings = ForwardSettings(entropies=entropies, chunk_logits=rows * words)
            logprobs_N, _ = sampled_measures(hidden_NH, targets_N, Projection(weight_VH), settings)
            logprobs_N.sum().backward()
        assert largest.elements == rows * words


@pytest.mark.slow
def test_a_vocabulary_of_151_000_words_at_8_192_tokens() -> None:
    tokens, words, hidden = 8192, 151_000, 8
    hidden_NH = torch.randn(tokens, hidden, requires_grad=True)
    weight_VH = torch.randn(words, hidden, requires_grad=True)
    settings = ForwardSettings(entropies=Entropies.WITH_GRADIENT)
    with Largest() as largest:
        logprobs_N, entropies_N = sampled_measures(
            hidden_NH, torch.randint(words, (tokens,)), Projection(weight_VH), settings
        )
        assert entropies_N is not None
        (logprobs_N.sum() + entropies_N.sum()).backward()
    assert largest.elements <= settings.chunk_logits  # 64 MiB, of 4.6 GiB


def test_logits_are_kept_where_one_block_holds_them() -> None:
    hidden_NH, weight_VH, _, targets_N = inputs()
    for rows, most in ((TOKENS, TOKENS * WORDS), (TOKENS - 1, WORDS * HIDDEN)):
        sizes = list[int]()

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sampled_measures(hidden_NH, targets_N, Projection(weight_VH), ForwardSettings(chunk_logits=rows * WORDS))
        assert max(sizes) == most


def test_blocks_fit_the_limit_and_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK_LOGITS", 100)
    monkeypatch.setattr(vocabulary, "BLOCK_ROWS", 4)
    sizes = [[part.stop - part.start for part in blocks(10, *limits)] for limits in ((20, 1000), (50, 1000), (50, 60))]
    assert sizes == [[5, 5], [4, 4, 2], [1] * 10]
    assert blocks(2, 50, 10) == [slice(0, 1), slice(1, 2)]  # one row is held at least


def test_bfloat16_gives_float32_measures_near_the_exact_ones() -> None:
    hidden_NH, weight_VH, _, targets_N = inputs()
    exact_N, _ = sampled_measures(hidden_NH, targets_N, Projection(weight_VH), ForwardSettings())
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden_NH, weight_VH)]
    logprobs_N, _ = sampled_measures(rounded[0], targets_N, Projection(rounded[1]), ForwardSettings())
    assert logprobs_N.dtype == torch.float32
    torch.testing.assert_close(logprobs_N, exact_N, atol=0.1, rtol=0.05)
    logprobs_N.sum().backward()
    expected = torch.autograd.grad(exact_N.sum(), (hidden_NH, weight_VH))
    for tensor, gradient in zip(rounded, expected, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.grad.float(), gradient, atol=0.15, rtol=0.05)


def test_values_come_from_the_state_that_predicts() -> None:
    head = torch.nn.Linear(1, 1)
    with torch.no_grad():
        head.weight.fill_(2.0)
        head.bias.fill_(1.0)
    states, index_BT = torch.tensor([[1.0], [5.0]]), torch.tensor([[2, 0, 1], [2, 0, 2]])
    settings = ForwardSettings(value_head=head)
    projection = Projection(torch.tensor([[0.0], [0.0]]))
    measures = measure_states(states, torch.tensor([0, 1]), index_BT, projection, settings)
    assert measures.values_BT is not None
    assert measures.values_BT.tolist() == [[0.0, 3.0, 11.0], [0.0, 3.0, 0.0]]
    assert measures.logprobs_BT.tolist() == [
        [0.0, *[pytest.approx(-math.log(2))] * 2],
        [0.0, pytest.approx(-math.log(2)), 0.0],
    ]
    with pytest.raises(ValueError, match=r"tensor of \(2, 3\), expected \(2, 1\)"):
        measure_states(
            states, torch.tensor([0, 1]), index_BT, projection, ForwardSettings(value_head=torch.nn.Linear(1, 3))
        )


def test_nothing_sampled_gives_zeros_on_the_graph() -> None:
    hidden_NH, weight_VH, _, _ = inputs()
    settings = ForwardSettings(entropies=Entropies.DETACHED)
    none = torch.empty(0, dtype=torch.long)
    measures = measure_states(hidden_NH[:0], none, torch.zeros(1, 3, dtype=torch.long), Projection(weight_VH), settings)
    assert measures.logprobs_BT.tolist() == [[0.0, 0.0, 0.0]]
    measures.logprobs_BT.sum().backward()
    assert hidden_NH.grad is not None
    assert hidden_NH.grad.abs().max() == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        ForwardSettings(temperature=temperature)
    with pytest.raises(ValueError, match="chunk_logits is 0"):
        ForwardSettings(chunk_logits=0)
