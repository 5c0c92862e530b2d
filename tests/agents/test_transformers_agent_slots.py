"""The life of turns in the transformers agent: what is computed, kept, copied, evicted and refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forkgym.agents.base import Completion, FinishReason, FirstTokens, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.slot_model import Ints, SlotModel
from forkgym.agents.slots import Stems
from forkgym.agents.transformers_agent import TransformersAgent
from tests.agents.tiny import byte_tokenizer, complete, completions, drive, finish, full_measures, make_model, weight

TOKENIZER = byte_tokenizer()
PROMPT = tuple(range(1, 41))


def make_agent(
    model: PreTrainedModel | None = None, slots: int = 4, max_context: int | None = None
) -> TransformersAgent:
    return TransformersAgent(model or make_model(), TOKENIZER, slots=slots, max_context=max_context)


def ask(uid: str, tokens: Sequence[int] = PROMPT, count: int = 3, **settings: object) -> Request:
    """A request without stop strings; the seed follows from the uid."""
    fields: dict[str, object] = {"stop": (), "seed": sum(uid.encode()), **settings}
    return Request(uid, tuple(tokens), count, **fields)  # type: ignore[arg-type]


def check_measures(model: PreTrainedModel, request: Request, completion: Completion) -> None:
    logprobs, entropies = full_measures(model, request.tokens, completion.tokens)
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-5, rel=1e-5)
    assert completion.entropies == pytest.approx(entropies, abs=1e-5, rel=1e-5)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of tokens that each forward of the agents computed, padding left out."""
    counts: list[int] = []
    run = SlotModel.run

    def counting(self: SlotModel, *inputs: Ints, stems: Stems | None = None) -> torch.Tensor:
        counts.append(int(inputs[3].sum()))
        return run(self, *inputs, stems=stems)

    monkeypatch.setattr(SlotModel, "run", counting)
    return counts


def test_rollouts_of_one_prompt_compute_it_once(computed: list[int]) -> None:
    agent = make_agent(slots=8)
    computed.clear()
    drive(agent, [ask(f"r{index}") for index in range(8)])
    # The prompt without its last token; then that token in all 8; then their first two tokens.
    assert computed == [39, 8, 8, 8]


def test_two_prompts_with_one_beginning_share_it(computed: list[int]) -> None:
    agent = make_agent(slots=8)
    computed.clear()
    drive(agent, [ask("a", (*PROMPT, 50, 51), 1), ask("b", (*PROMPT, 60, 61, 62), 1)])
    # 41 of the first; then the 2 after the shared 40 of the second; then both last tokens.
    assert computed == [41, 2, 2]


def test_a_continuation_computes_its_reply_only(computed: list[int]) -> None:
    model = make_model()
    agent = make_agent(model)
    first = complete(agent, ask("a"))
    computed.clear()
    request = ask("b", (*PROMPT, *first.tokens, 70, 71), continues="a")
    second = complete(agent, request)
    # The last sampled token and the reply's first; then its last and the first two sampled.
    assert computed == [2, 1, 1, 1]
    check_measures(model, request, second)


def test_a_branch_of_a_running_turn_computes_one_token(computed: list[int]) -> None:
    model = make_model()
    agent = make_agent(model)
    agent.submit(ask("a", count=9, report_after=2))
    (event,) = agent.step()
    assert isinstance(event, FirstTokens)
    computed.clear()
    branch = ask("b", count=4)
    agent.submit(branch)
    done = completions(finish(agent, {"a", "b"}))
    assert computed == [2, 2, 2, 2, 1, 1, 1]
    check_measures(model, branch, done["b"])
    check_measures(model, ask("a", count=9), done["a"])


def test_a_released_slots_contents_still_serve(computed: list[int]) -> None:
    agent = make_agent(slots=1)
    complete(agent, ask("a"))
    agent.release("a")
    computed.clear()
    complete(agent, ask("b", (*PROMPT[:30], 99, 98), 1))
    assert computed == [1, 1]  # token 31, then the last


def test_a_slot_that_gets_a_prefix_gives_it_on_in_the_same_round() -> None:
    model = make_model()
    agent = make_agent(model, slots=3)
    drive(agent, [ask("other", range(100, 120)), ask("a")])
    agent.release("other")
    # Slot 1 holds the prefix; "b" takes slot 0 and copies it, "c" takes slot 2 and finds it in slot 0 first.
    requests = [ask("b", (*PROMPT[:30], 91)), ask("c", (*PROMPT[:30], 92))]
    done = completions(drive(agent, requests))
    for request in requests:
        check_measures(model, request, done[request.uid])


def test_more_requests_than_slots_are_taken_in_order() -> None:
    agent = make_agent(slots=2)
    for index in range(6):
        agent.submit(ask(f"r{index}", (index + 1,), 2))
    order: list[str] = []
    while len(order) < 6:
        for uid in completions(agent.step()):
            order.append(uid)
            agent.release(uid)
    assert order == [f"r{index}" for index in range(6)]


def test_those_that_wait_for_a_prefix_keep_their_places() -> None:
    agent = make_agent(slots=3)
    requests = [*(ask(f"same{index}", count=2) for index in range(3)), ask("other", (7, 8, 9), 1)]
    for request in requests:
        agent.submit(request)
    events = finish(agent, {"same0", "same1", "same2"})
    assert [event.uid for event in events] == ["same0", "same1", "same2"]


def test_held_turns_give_way_when_nothing_else_can_run(computed: list[int]) -> None:
    model = make_model()
    agent = make_agent(model, slots=2)
    done = completions(drive(agent, [ask("a"), ask("b", PROMPT[5:])]))
    third = completions(drive(agent, [ask("c", PROMPT[9:])]))  # no slot is free: "a", the first to finish, loses its
    assert set(third) == {"c"}
    computed.clear()
    kept = ask("kept", (*PROMPT[5:], *done["b"].tokens, 8), 1, continues="b")
    done |= completions(drive(agent, [kept]))
    assert computed == [1, 1]  # the last token of "b", then the 8
    lost = ask("lost", (*PROMPT, *done["a"].tokens, 7), continues="a")
    done |= completions(drive(agent, [lost]))
    check_measures(model, kept, done["kept"])
    check_measures(model, lost, done["lost"])


def test_an_idle_agent_has_no_events() -> None:
    assert list(make_agent().step()) == []


def test_first_tokens_come_once_and_before_their_completion() -> None:
    agent = make_agent()
    requests = [ask("long", count=6, report_after=4), ask("short", count=2, report_after=4), ask("never", count=2)]
    events = drive(agent, requests)
    kinds = [(event.uid, type(event)) for event in events]
    # "short" and "never" finish with their second token, "long" reports with its fourth.
    assert kinds == [
        ("short", FirstTokens),
        ("short", Completion),
        ("never", Completion),
        ("long", FirstTokens),
        ("long", Completion),
    ]
    done = completions(events)
    reports = {event.uid: event.entropies for event in events if isinstance(event, FirstTokens)}
    assert reports == {"short": done["short"].entropies, "long": done["long"].entropies[:4]}


def test_events_of_a_step_come_in_the_order_of_submission() -> None:
    agent = make_agent(slots=3)
    first = complete(agent, ask("a"))
    requests = [ask("b", PROMPT[2:]), ask("c", (*PROMPT, *first.tokens), continues="a"), ask("d", PROMPT[1:])]
    events = drive(agent, requests)
    assert [event.uid for event in events] == ["b", "c", "d"]


def test_the_longest_context_ends_a_turn() -> None:
    model = make_model()
    agent = make_agent(model, max_context=43)
    full = complete(agent, ask("a", count=9))
    assert len(full.tokens) == 3
    assert full.finish_reason is FinishReason.CONTEXT
    exact = complete(agent, ask("b", count=3))
    assert exact.finish_reason is FinishReason.TURN_TOKENS
    # A context that is full from the start gives no token, whether its turn has a slot or not.
    events = drive(
        agent, [ask("c", (*PROMPT, *full.tokens), continues="a", report_after=2), ask("d", range(60), report_after=0)]
    )
    empty = completions(events)
    assert [type(event) for event in events] == [FirstTokens, Completion, Completion]
    for uid in "cd":
        assert empty[uid].tokens == ()
        assert empty[uid].text == ""
        assert empty[uid].finish_reason is FinishReason.CONTEXT
    agent.release("c")
    agent.release("d")
    agent.abort("b")


def test_the_models_own_limit_is_the_default() -> None:
    completion = complete(make_agent(make_model(max_position_embeddings=45)), ask("a", count=20))
    assert len(completion.tokens) == 5
    assert completion.finish_reason is FinishReason.CONTEXT


def test_abort() -> None:
    agent = make_agent(slots=1)
    agent.submit(ask("running", count=9, report_after=1))
    agent.submit(ask("queued"))
    agent.submit(ask("kept"))
    assert [event.uid for event in agent.step()] == ["running"]
    agent.abort("queued")
    agent.abort("running")
    events = finish(agent, {"kept"})
    assert [event.uid for event in events] == ["kept"]
    agent.abort("kept")
    agent.submit(ask("full", range(200)))  # completes without a step
    agent.abort("full")
    assert list(agent.step()) == []
    for uid in ("running", "queued", "kept", "full", "unknown"):
        with pytest.raises(ValueError, match=uid):
            agent.abort(uid)


def test_release_refuses_what_is_not_finished() -> None:
    agent = make_agent()
    agent.submit(ask("a"))
    for uid in ("a", "unknown"):
        with pytest.raises(ValueError, match=f"turn {uid}: expected a finished turn"):
            agent.release(uid)
    finish(agent, {"a"})
    agent.release("a")
    with pytest.raises(ValueError, match="turn a"):
        agent.release("a")


def test_bad_requests_change_nothing() -> None:
    agent = make_agent(slots=1)
    done = complete(agent, ask("a"))
    after = (*PROMPT, *done.tokens)
    for request, message in (
        (ask("a"), "another live request has this uid"),
        (ask("b", (1, 262)), "tokens from 1 to 262, expected 0 to 261"),
        (ask("b", (-1, 3)), "tokens from -1 to 3"),
        (ask("b", after, continues="unknown"), "continues 'unknown', expected a finished turn"),
        (ask("b", (*PROMPT, 9, 9, 9, 9), continues="a"), "does not begin with the 43 tokens of 'a'"),
        (ask("b", after, continues="a", stop=("x", "")), "one is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.submit(request)
    assert len(complete(agent, ask("b", after, continues="a")).tokens) == 3
    with pytest.raises(ValueError, match="continues 'a'"):  # it was continued already
        agent.submit(ask("c", after, continues="a"))


def test_new_weights_of_the_same_model_make_the_cache_void() -> None:
    model = make_model()
    agent = TransformersAgent(model, TOKENIZER, slots=2, version=3)
    first = complete(agent, ask("a"))
    assert first.version == 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    agent.load_weights(model, 4)
    again = complete(agent, ask("again"))
    request = ask("b", (*PROMPT, *first.tokens, 5), continues="a")
    second = complete(agent, request)
    assert second.version == 4
    check_measures(model, ask("again"), again)
    check_measures(model, request, second)


def test_weights_of_another_model_are_copied() -> None:
    agent = make_agent()
    other = make_model()
    with torch.no_grad():
        weight(other, "model.embed_tokens.weight").mul_(0.5)
    agent.load_weights(other, 1)
    check_measures(other, ask("a"), complete(agent, ask("a")))
    with torch.no_grad():  # a copy: what becomes of the other changes nothing
        weight(other, "model.embed_tokens.weight").zero_()
    check_measures(agent.model, ask("b"), complete(agent, ask("b")))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="weights of version 1 don't fit"):
        make_agent().load_weights(make_model(hidden_size=16), 1)


def test_weights_wait_for_requests() -> None:
    agent = make_agent(slots=1)
    agent.submit(ask("a"))
    agent.submit(ask("b"))
    with pytest.raises(RuntimeError, match="0 requests run and 2 are queued"):
        agent.load_weights(agent.model, 1)
    finish(agent, {"a"})
    with pytest.raises(RuntimeError, match="queued, expected none"):
        agent.load_weights(agent.model, 1)


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model = make_model(attention_dropout=0.5)
    agent = make_agent(model)
    model.train()
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    completion = complete(agent, ask("a"))
    assert [module.training for module in model.modules()] == modes
    check_measures(model.eval(), ask("a"), completion)


def test_gradients_are_unharmed_by_sampling() -> None:
    model = make_model()
    agent = make_agent(model)
    complete(agent, ask("a"))
    model(input_ids=torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sampled_tokens_are_what_the_next_context_holds() -> None:
    agent = make_agent(slots=3)
    rng = np.random.default_rng(0)
    contexts = {f"{index}/0": tuple(rng.integers(0, 256, 5).tolist()) for index in range(5)}
    for uid, context in contexts.items():
        agent.submit(ask(uid, context, 4))
    finished = 0
    while finished < 5:
        for uid, completion in completions(agent.step()).items():
            rollout, turn = map(int, uid.split("/"))
            # Rubbish that no tokenizer would encode to the same ids again.
            context = (*contexts[uid], *completion.tokens, *rng.integers(0, 256, 3).tolist())
            if turn == 3:
                agent.release(uid)
                finished += 1
                continue
            new = f"{rollout}/{turn + 1}"
            contexts[new] = context
            agent.submit(ask(new, context, 4, continues=uid))
    text = TokenizerCodec(TOKENIZER).decode(contexts["0/3"])
    assert TokenizerCodec(TOKENIZER).encode_turn(text) != contexts["0/3"]


@pytest.mark.parametrize("value", [0, -1])
def test_bad_limits(value: int) -> None:
    with pytest.raises(ValueError, match=f"slots is {value}, expected 1 or more"):
        make_agent(slots=value)
    with pytest.raises(ValueError, match=f"max_context is {value}, expected 1 or more"):
        make_agent(max_context=value)
