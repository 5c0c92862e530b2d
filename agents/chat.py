"""Chat templates, message by message: what a conversation adds to its tokens, never rendering again what is there.

A template renders whole conversations. Here it renders a short one with stand-ins for all outside text, so that it is
known which characters are the template's own: control tokens are recognised in those alone.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from forkgym.envs.grammar import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Drawn anew in every process, so that no outside text can hold one. Letters and digits only: a template may look for
# markers in a message, or strip blanks from it.
STAND_IN = f"standin{secrets.token_hex(12)}"
STAND_INS = re.compile(f"{STAND_IN}x([0-9]+)x")
OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
Messages = list[dict[str, str]]


class ChatTemplate:
    """The chat template of a tokenizer.

    Instructions are the system message, or stand before the question where the template refuses one; a template that
    takes a system message and does not show it, as that of the embedded policy, leaves them out. Tools are described
    by the template itself where it does that, else by the instructions. A result is a message of the role ``tool``, or
    a user's message where the template knows no such role.

    Args:
        tokenizer: A fast tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.control_tokens = control_token_pattern(tokenizer)
        self.control_ids = frozenset(control_tokens_of(tokenizer))

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The beginning of a conversation, up to where the policy's first message starts."""
        instructions = prompt.instructions
        tools: list[dict[str, Any]] | None = None
        hidden: tuple[str, ...] = ()
        if prompt.schemas and self.describes_tools:
            instructions = prompt.brief
            tools, hidden = self._without_control_tokens(prompt.schemas, first=2)
        if self.has_system_role:
            messages = [{"role": "system", "content": stand_in(0)}, {"role": "user", "content": stand_in(1)}]
            return self._ids(self._render(messages, tools), (instructions, prompt.question, *hidden))
        rendered = self._render([{"role": "user", "content": stand_in(0)}], tools)
        return self._ids(rendered, (f"{instructions}\n\n{prompt.question}", "", *hidden))

    def encode_results(self, results: Sequence[str], turn: Sequence[int]) -> list[int]:
        """What follows a turn: the end of its message, the results, the start of the policy's next message.

        Args:
            results: Contents of the results.
            turn: The turn's tokens; the end token of its message is added only where it is not the last of them.
        """
        if not self.has_tool_role:  # one message, since most templates want users and assistants in turn
            results = ["\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)]
        elif self.quotes_results:
            results = [json.dumps(result, ensure_ascii=False)[1:-1] for result in results]
        role = "tool" if self.has_tool_role else "user"
        messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": stand_in(0)},
            *({"role": role, "content": stand_in(place)} for place in range(1, len(results) + 1)),
        ]
        _, _, after = self._render(messages, None).rpartition(stand_in(0))
        end = self.control_tokens.search(after.partition(STAND_IN)[0])  # some templates write a blank before it
        if turn and end is not None and self._id(end[0]) == turn[-1]:
            after = after[end.end() :]
        return self._ids(after, ("", *results))

    @cached_property
    def opening(self) -> str:
        """The thought's opening tag with which the template begins the policy's message; empty where it does not."""
        found = OPENED_THOUGHT.search(self._render([{"role": "user", "content": "question"}], None))
        return found[0] if found is not None else ""

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template takes a system message; some raise on one."""
        try:
            self._render([{"role": "system", "content": stand_in(0)}, {"role": "user", "content": stand_in(1)}], None)
        except TemplateError:
            return False
        return True

    @cached_property
    def has_tool_role(self) -> bool:
        """Whether the template takes a tool's message, and shows it."""
        messages = [
            {"role": "user", "content": stand_in(0)},
            {"role": "assistant", "content": stand_in(1)},
            {"role": "tool", "content": stand_in(2)},
        ]
        try:
            return stand_in(2) in self._render(messages, None)
        except TemplateError:
            return False

    @cached_property
    def quotes_results(self) -> bool:
        """Whether the template writes a tool's message as a JSON string, as those of Llama 3 do."""
        messages = [
            {"role": "user", "content": stand_in(0)},
            {"role": "assistant", "content": stand_in(1)},
            {"role": "tool", "content": f'{stand_in(2)}"'},
        ]
        return f'{stand_in(2)}\\"' in self._render(messages, None)

    @cached_property
    def describes_tools(self) -> bool:
        """Whether the template writes the tools that it is given."""
        parameters: dict[str, Any] = {"type": "object", "properties": {}}
        tool = {"name": stand_in(0), "description": "", "parameters": parameters}
        messages = [{"role": "user", "content": "question"}]
        try:
            return stand_in(0) in self._render(messages, [{"type": "function", "function": tool}])
        except TemplateError:
            return False

    def _render(self, messages: Messages, tools: Sequence[Any] | None) -> str:
        template: Any = self.tokenizer
        text: Any = template.apply_chat_template(
            messages, tools=None if tools is None else list(tools), add_generation_prompt=True, tokenize=False
        )
        assert isinstance(text, str)
        return text

    def _without_control_tokens(
        self, schemas: Sequence[Mapping[str, Any]], first: int
    ) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Put stand-ins, numbered from ``first``, for the control tokens in schemas, whose author may be a server."""
        hidden: list[str] = []

        def hide(found: re.Match[str]) -> str:
            hidden.append(found[0])
            return stand_in(first + len(hidden) - 1)

        text = json.dumps(list(schemas), ensure_ascii=False)
        safe: list[dict[str, Any]] = json.loads(self.control_tokens.sub(hide, text))
        return safe, tuple(hidden)

    def _ids(self, rendered: str, outside: Sequence[str]) -> list[int]:
        """Encode a rendering in which ``outside[i]`` takes the place of stand-in i.

        It is encoded in one go, as where a conversation is encoded whole, if that gives no control token but the
        template's own. Otherwise those are looked up, and what lies between two of them, the template's words and
        outside text, is encoded without control tokens.
        """
        pieces = self.control_tokens.split(rendered)
        own = [self._id(piece) for piece in pieces[1::2]]
        whole = self._encode(fill(rendered, outside))
        if [token for token in whole if token in self.control_ids] == own:
            return whole
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                ids.append(own[place // 2])
            elif piece:
                ids += self._encode(fill(piece, outside), split_special_tokens=True)
        return ids

    def _id(self, control_token: str) -> int:
        """The id of a control token, with or without the blanks that it swallows."""
        token: Any = self.tokenizer.convert_tokens_to_ids(control_token.strip())
        assert isinstance(token, int)
        return token

    def _encode(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        encoded: Any = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
        ids: list[int] = encoded["input_ids"]
        return ids


def stand_in(place: int) -> str:
    """What stands in a rendering for an outside text."""
    return f"{STAND_IN}x{place}x"


def fill(rendered: str, outside: Sequence[str]) -> str:
    """Put ``outside[i]`` in the place of stand-in i."""
    return STAND_INS.sub(lambda found: outside[int(found[1])], rendered)


def control_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Split a text at control tokens and keep them: every second piece is one, with the blanks that it swallows."""
    tokens = sorted(control_tokens_of(tokenizer).values(), key=lambda token: -len(token.content))
    alternatives = [
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in tokens
    ]
    return re.compile("(" + ("|".join(alternatives) or "(?!)") + ")")


def control_tokens_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, Any]:
    """The control tokens of a tokenizer by id."""
    table: Any = tokenizer.added_tokens_decoder
    return {number: token for number, token in table.items() if token.special}
