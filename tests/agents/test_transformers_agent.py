"""The transformers agent's numbers: equal to full recomputation, whatever happens around a request."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedModel

from forkgym.agents import slots, transformers_agent
from forkgym.agents.base import Completion, FinishReason, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.slots import Stems
from forkgym.agents.stem_attention import StemPlan, plan_stems
from forkgym.agents.transformers_agent import TransformersAgent
from tests.agents.tiny import (
    FAMILIES,
    byte_tokenizer,
    complete,
    completions,
    drive,
    finish,
    full_measures,
    make_model,
    weight,
)

TOKENIZER = byte_tokenizer()
CODEC = TokenizerCodec(TOKENIZER)
LETTERS = tuple(string.ascii_letters)
X, Y, Z = CODEC.encode_turn("xyz")


def make_agent(model: PreTrainedModel | None = None, slots: int = 4) -> TransformersAgent:
    return TransformersAgent(model or make_model(), TOKENIZER, slots=slots)


def random_tokens(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, count).tolist())


def check_measures(model: PreTrainedModel, request: Request, completion: Completion) -> None:
    logprobs, entropies = full_measures(model, request.tokens, completion.tokens, request.temperature or 1.0)
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-5, rel=1e-5)
    assert completion.entropies == pytest.approx(entropies, abs=1e-5, rel=1e-5)


class Wanderer:
    """Drives an agent at random: fresh prompts, continuations, branches, releases and aborts."""

    def __init__(self, agent: TransformersAgent, seed: int) -> None:
        self.agent = agent
        self.rng = np.random.default_rng(seed)
        self.prompts = [random_tokens(self.rng, int(size)) for size in self.rng.integers(1, 24, 3)]
        self.requests: dict[str, Request] = {}
        self.results: dict[str, Completion] = {}
        self.held: list[str] = []
        self.running: set[str] = set()

    def submit(self, context: tuple[int, ...], continues: str | None) -> None:
        uid = f"r{len(self.requests)}"
        request = Request(
            uid,
            context,
            max_tokens=int(self.rng.integers(1, 9)),
            stop=(LETTERS, ())[len(self.requests) % 2],
            seed=int(self.rng.integers(2**32)),
            temperature=float(self.rng.choice([0.0, 0.7, 1.0, 1.5])),
            continues=continues,
            report_after=int(self.rng.integers(0, 4)),
        )
        self.agent.submit(request)
        self.requests[uid] = request
        self.running.add(uid)

    def wander(self, actions: int) -> None:
        for _ in range(actions):
            choice = self.rng.random()
            if choice < 0.3:
                self.submit(self.prompts[self.rng.integers(3)] + random_tokens(self.rng, 1), None)
            elif choice < 0.4 and self.requests:
                # A branch: some tokens of any context so far and others after them.
                whole = self.requests[str(self.rng.choice(list(self.requests)))].tokens
                begin = whole[: int(self.rng.integers(len(whole) + 1))]
                self.submit(begin + random_tokens(self.rng, 2), None)
            elif choice < 0.65 and self.held:
                uid = self.held.pop(self.rng.integers(len(self.held)))
                past = self.requests[uid].tokens + self.results[uid].tokens
                self.submit(past + random_tokens(self.rng, int(self.rng.integers(0, 12))), uid)
            elif choice < 0.75 and self.held:
                self.agent.release(self.held.pop(0))
            elif choice < 0.8 and self.running:
                uid = sorted(self.running)[0]
                self.agent.abort(uid)
                self.running.remove(uid)
            else:
                self.step()
        while self.running:
            self.step()

    def step(self) -> None:
        for uid, completion in completions(self.agent.step()).items():
            assert uid in self.running
            self.running.remove(uid)
            self.held.append(uid)
            self.results[uid] = completion


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_entropies_are_those_of_full_recomputation(family: str) -> None:
    model = make_model(family)
    wanderer = Wanderer(make_agent(model, slots=3), seed=1)
    wanderer.wander(60)
    assert len(wanderer.results) > 10
    assert {completion.finish_reason for completion in wanderer.results.values()} >= {
        FinishReason.STOP,
        FinishReason.TURN_TOKENS,
    }
    for uid, completion in wanderer.results.items():
        check_measures(model, wanderer.requests[uid], completion)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("seed", range(2))
def test_measures_are_right_where_stems_are_read_once(family: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "WORTH_SHARING", 1)
    used: list[int] = []

    def counting(stems: Stems, stores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> StemPlan:
        used.append(len(stems.stem_of_row) - len(stems.holders))
        return plan_stems(stems, stores)

    monkeypatch.setattr("forkgym.agents.slot_model.plan_stems", counting)
    model = make_model(family)
    wanderer = Wanderer(make_agent(model, slots=7), seed)
    wanderer.wander(80)
    assert sum(used) > 20
    for uid, completion in wanderer.results.items():
        check_measures(model, wanderer.requests[uid], completion)


def test_new_weights_make_new_stems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "WORTH_SHARING", 1)
    model = make_model()
    agent = make_agent(model)
    prompt = random_tokens(np.random.default_rng(0), 20)
    for version in range(2):
        with torch.no_grad():
            weight(model, "model.layers.0.self_attn.k_proj.weight").add_(0.25 * version)
        agent.load_weights(model, version)
        requests = [Request(f"{version}-{index}", prompt, 6, (), seed=index) for index in range(4)]
        done = completions(drive(agent, requests))
        for request in requests:
            check_measures(model, request, done[request.uid])


def test_eager_attention_gets_the_same_mask() -> None:
    model = make_model(attn_implementation="eager")
    wanderer = Wanderer(make_agent(model, slots=3), seed=2)
    wanderer.wander(40)
    for uid, completion in wanderer.results.items():
        check_measures(model, wanderer.requests[uid], completion)


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_right_when_caches_are_filled_in_small_pieces(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_agent, "PREFILL_WIDTH", 5)
    monkeypatch.setattr(transformers_agent, "PREFILL_TOKENS", 12)
    monkeypatch.setattr(transformers_agent, "WORTH_WAITING", 2)
    model = make_model("mistral-window")
    wanderer = Wanderer(make_agent(model, slots=4), seed)
    wanderer.wander(60)
    for uid, completion in wanderer.results.items():
        check_measures(model, wanderer.requests[uid], completion)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**20), slots=st.integers(1, 9), others=st.integers(0, 8))
def test_a_request_draws_the_same_tokens_in_any_company(seed: int, slots: int, others: int) -> None:
    # In double precision a batch of another shape changes no token.
    model = MODEL_64
    rng = np.random.default_rng(seed)
    prompt = random_tokens(rng, 12)
    request = Request("x", prompt, 10, ("a",), seed=seed)
    alone = complete(make_agent(model, slots=2), request)
    agent = make_agent(model, slots)
    company = [
        Request(f"o{index}", prompt[: rng.integers(1, 13)] + random_tokens(rng, 3), 8, (), seed=index)
        for index in range(others)
    ]
    drive(agent, company[: others // 2])
    events = drive(agent, [*company[others // 2 :], request])
    assert completions(events)["x"].tokens == alone.tokens
    assert completions(events)["x"].logprobs == pytest.approx(alone.logprobs, abs=1e-6)


MODEL_64 = make_model(dtype=torch.float64)


def test_the_same_submissions_give_the_same_bits() -> None:
    results = []
    for _ in range(2):
        wanderer = Wanderer(make_agent(slots=3), seed=3)
        wanderer.wander(50)
        results.append(wanderer.results)
    assert results[0] == results[1]


def test_another_seed_draws_other_tokens() -> None:
    agent = make_agent()
    first, second = (complete(agent, Request(f"s{seed}", (1, 2), 12, (), seed)) for seed in (0, 1))
    assert first.tokens != second.tokens


def test_a_model_that_knows_nothing_is_uniform() -> None:
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        weight(model, "lm_head.weight").zero_()
    agent = make_agent(model)
    assert agent.vocabulary_size == 262
    completion = complete(agent, Request("x", (1,), 5, (), seed=0, temperature=0.3))
    assert completion.entropies == pytest.approx([math.log(262)] * len(completion.tokens), abs=1e-5)
    assert completion.logprobs == pytest.approx([-math.log(262)] * len(completion.tokens), abs=1e-5)


def test_greedy_is_argmax() -> None:
    model = make_model()
    completion = complete(make_agent(model), Request("x", (5, 6, 7), 8, (), seed=0, temperature=0.0))
    tokens: tuple[int, ...] = (5, 6, 7)
    for token in completion.tokens:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        assert token == int(logits.argmax())
        tokens = (*tokens, token)
    assert len(completion.tokens) == 8


@pytest.mark.parametrize("seed", range(12))
def test_stops_at_the_token_that_completes_a_stop_string(seed: int) -> None:
    check_stop(make_agent(), seed)


def check_stop(agent: TransformersAgent, seed: int) -> None:
    """Sample freely, choose a stop string from what came, and sample again with it."""
    prompt = (1, 2, 3)
    free = complete(agent, Request("free", prompt, 40, (), seed))
    pieces = [piece for piece in free.text.split("\ufffd") if piece]
    rng = np.random.default_rng(seed)
    piece = pieces[rng.integers(len(pieces))]
    begin = int(rng.integers(len(piece)))
    stop = piece[begin : begin + 3]
    stopped = complete(agent, Request("stopped", prompt, 40, (stop,), seed))
    decode = agent.codec.decode
    count = next(count for count in range(1, 41) if stop in decode(free.tokens[:count]))
    assert stopped.tokens == free.tokens[:count]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == decode(free.tokens[:count])
    assert stop in stopped.text


@pytest.mark.parametrize("seed", range(4))
def test_stops_with_a_real_tokenizer(shared_data: Path, seed: int) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    check_stop(TransformersAgent(make_model(vocabulary=len(tokenizer)), tokenizer), seed)


def forced(*tokens: int) -> TransformersAgent:
    """An agent whose model says these tokens one after the other, by the position of the last token."""
    model = make_model("gpt2", hidden_size=96, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        weight(model, "transformer.ln_f.weight").fill_(1.0)
        weight(model, "transformer.wpe.weight").copy_(torch.eye(96))
        for position, token in enumerate(tokens):
            weight(model, "lm_head.weight")[token, position] = 100.0
    return make_agent(model)


def test_the_end_token_is_sampled_but_is_no_text() -> None:
    completion = complete(forced(X, Y, 260, Z), Request("x", (1,), 9, ("zz",), seed=0))
    assert completion.tokens == (X, Y, 260)
    assert completion.text == "xy"
    assert completion.finish_reason is FinishReason.END
    assert completion.logprobs == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_stop_string_wins_over_an_end_token_that_completes_it() -> None:
    completion = complete(forced(X, 260), Request("x", (1,), 9, ("<|end|>",), seed=0))
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text == "x<|end|>"


def test_a_stop_string_on_the_last_allowed_token_is_a_stop() -> None:
    completion = complete(forced(X, Y, Z), Request("x", (1,), 2, ("xy",), seed=0))
    assert completion.finish_reason is FinishReason.STOP


def test_a_stop_string_that_began_in_the_context_does_not_count() -> None:
    completion = complete(forced(0, Y, Z), Request("x", (1, X), 2, ("xy",), seed=0))
    assert completion.tokens == (Y, Z)
    assert completion.finish_reason is FinishReason.TURN_TOKENS


def test_the_models_settings_for_generation_truncate_nothing() -> None:
    # Under its top-k of 1 each token would be the likeliest, with log-prob 0: the trained model's ratio to that is the
    # probability itself, and no other token would ever be tried.
    model = make_model()
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, top_p=0.1, repetition_penalty=2.0)
    agent = make_agent(model)
    others = 0
    for seed in range(8):
        completion = complete(agent, Request(f"r{seed}", (1, 2, 3), 4, (), seed))
        greedy = complete(agent, Request(f"g{seed}", (1, 2, 3), 1, (), seed, temperature=0.0))
        logprobs, _ = full_measures(model, (1, 2, 3), completion.tokens)
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
        others += completion.tokens[:1] != greedy.tokens
    assert others > 0


def test_weights_that_have_diverged_are_reported() -> None:
    model = make_model()
    agent = make_agent(model)
    with torch.no_grad():
        weight(model, "model.embed_tokens.weight").fill_(math.nan)
    agent.submit(Request("x", (1, 2), 4, (), seed=0))
    with pytest.raises(ValueError, match="NaN or infinity"):
        finish(agent, {"x"})
