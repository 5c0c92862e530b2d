"""Short conversations with one tool, as rows of a file hold them."""

from __future__ import annotations

import json
from typing import Any

from forkgym.envs.hermes import HermesGrammar
from forkgym.tools.base import as_tool
from forkgym.trainers.sft.messages import Conversation


def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


SHOUT = as_tool(shout, inline=True)
TOOLS = [dict(schema) for schema in HermesGrammar().prompt([SHOUT], "").schemas]
USER = {"role": "user", "content": "What is 3 + 4?"}


def call(text: str, name: str = "1") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "shout", "arguments": json.dumps({"text": text})}}


def asks(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def says(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def result(content: str, name: str = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": content}


def conversation(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> Conversation:
    return Conversation.model_validate({"messages": messages, "tools": tools})


def names(name: str, arguments: object) -> dict[str, Any]:
    """An assistant's message that calls a tool of this name."""
    return asks({"id": "1", "function": {"name": name, "arguments": arguments}})
