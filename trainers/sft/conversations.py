"""Conversations with tool calls, as the chat completions interface writes them: their tokens in a hermes rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from forkgym.agents.chat import ChatTemplate, Messages, stand_in
from forkgym.agents.codec import TokenizerCodec
from forkgym.envs.grammar import Prompt, Reply
from forkgym.envs.hermes import FINISH
from forkgym.trainers.sft.checking import check
from forkgym.trainers.sft.demonstrations import Demonstration, Spans, after_opening
from forkgym.trainers.sft.messages import HERMES, Conversation, DescribedTool, Message

if TYPE_CHECKING:
    from forkgym.tools.base import Tool

MARKERS = HERMES.markers(())


class ConversationTemplate(ChatTemplate):
    """A chat template for conversations that may have no system message, and several questions."""

    def encode_start(self, prompt: Prompt) -> list[int]:
        """The beginning of a conversation; as ``encode_prompt``, but without instructions no system message."""
        instructions = prompt.brief if self.describes_tools else prompt.instructions
        if instructions:
            return self.encode_prompt(prompt)
        tools, hidden = self._without_control_tokens(prompt.schemas, first=1) if prompt.schemas else (None, ())
        rendered = self._render([{"role": "user", "content": stand_in(0)}], tools)
        return self._ids(rendered, (prompt.question, *hidden))

    def encode_question(self, question: str, turn: Sequence[int]) -> list[int]:
        """What follows a turn that ends with its end token: a question, the start of the policy's next message."""
        messages: Messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": stand_in(0)},
            {"role": "user", "content": stand_in(1)},
        ]
        after = self._render(messages, None).rpartition(stand_in(0))[2]
        end = self.control_tokens.search(after.partition(stand_in(1))[0])
        if end is not None and self._id(end[0]) == turn[-1]:
            after = after[end.end() :]
        return self._ids(after, ("", question))


@dataclass(frozen=True, slots=True)
class Renderer:
    """Makes demonstrations of conversations.

    Attributes:
        codec: Of the policy.
        template: The same tokenizer's.
        end: See `forkgym.trainers.sft.demonstrations.message_end`.
    """

    codec: TokenizerCodec
    template: ConversationTemplate
    end: int

    def render(self, conversation: Conversation) -> Demonstration:
        """The conversation as a rollout would have made it, where the policy had written the assistant's messages.

        No message is rendered again when the next one comes; results are escaped, and control tokens in what the
        policy did not write are taken apart. Every message of the assistant ends with its end token, which the policy
        has to learn.

        Raises:
            ValueError: See `check`.
        """
        messages = check(conversation)
        first = next(place for place, message in enumerate(messages) if message.role == "assistant")
        spans = Spans(self.template.encode_start(prompt_of(messages[:first], conversation.tools)))
        place = first
        while place < len(messages):
            text = after_opening(messages[place].text, self.template.opening)
            turn = (*self._encode_written(text), self.end)
            after = place + 1
            while after < len(messages) and messages[after].role != "assistant":
                after += 1
            spans.add(turn, self._encode_between(messages[place + 1 : after], turn))
            place = after
        return spans.demonstration()

    def _encode_written(self, text: str) -> Sequence[int]:
        """A message of the assistant; control tokens in it are taken apart, except markers: it did not end there."""
        foreign = [piece for piece in self.codec.control_tokens.split(text)[1::2] if piece.strip() not in MARKERS]
        return self.codec.encode_reply(Reply(text, MARKERS), ()) if foreign else self.codec.encode_turn(text)

    def _encode_between(self, messages: Sequence[Message], turn: Sequence[int]) -> Sequence[int]:
        """What the assistant reads after a turn: results in the order of its calls, or a question."""
        if not messages:
            return ()
        if messages[0].role == "user":
            return self.template.encode_question(messages[0].content or "", turn)
        return self.template.encode_results([HERMES.escape(message.content or "", ()) for message in messages], turn)


def prompt_of(messages: Sequence[Message], tools: Sequence[DescribedTool]) -> Prompt:
    """What a conversation begins with: a system message, where there is one, and the first question."""
    system = messages[0].content or "" if messages[0].role == "system" else ""
    # The grammar asks no more of a tool than what there is.
    described = HERMES.prompt(cast("list[Tool]", [tool.function for tool in tools]), "")
    said = described.instructions.removesuffix(FINISH).strip() if tools else ""
    instructions = "\n\n".join(text for text in (system, said) if text)
    return Prompt(instructions, messages[-1].content or "", system, described.schemas)


def make_renderer(codec: TokenizerCodec, end: int, name: str) -> Renderer:
    """Prepare for conversations.

    Args:
        codec: Of the policy.
        end: The token that ends a message.
        name: Of the tokenizer, for messages.

    Raises:
        ValueError: The tokenizer has no chat template.
    """
    if codec.chat is None:
        raise ValueError(f"tokenizer {name!r} has no chat template, which conversations need; expected a chat model's")
    return Renderer(codec, ConversationTemplate(codec.tokenizer), end)
