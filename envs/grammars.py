"""The grammars by name, and how a user's own one is found."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from forkgym.envs.grammar import Grammar
from forkgym.envs.hermes import HermesGrammar
from forkgym.envs.tag_grammar import TagGrammar
from forkgym.tools.references import FORMS, is_reference, load_reference

MEMBERS = sorted(name for name in vars(Grammar) if not name.startswith("_"))

GRAMMARS: Mapping[str, Grammar] = MappingProxyType(
    {
        "arpo": TagGrammar("arpo"),
        "search_r1": TagGrammar("search_r1", result="information", boxed=False),
        "hermes": HermesGrammar(),
    }
)


def resolve_grammar(grammar: str | Grammar) -> Grammar:
    """Return a preset by name, or a user's own one by reference; a grammar object is returned as it is.

    Raises:
        ValueError: No preset has that name, or the reference leads to no grammar.
    """
    if not isinstance(grammar, str):
        return grammar
    if grammar in GRAMMARS:
        return GRAMMARS[grammar]
    if not is_reference(grammar):
        raise ValueError(f"grammar {grammar!r}: expected one of {', '.join(sorted(GRAMMARS))}, or {FORMS}")
    found: Any = load_reference(grammar, "grammar")
    if inspect.isclass(found):
        raise ValueError(f"grammar {grammar!r} is a class, expected an object that is made of one")
    missing = [name for name in MEMBERS if not hasattr(found, name)]
    if missing:
        raise ValueError(f"grammar {grammar!r} is no grammar: it has no {missing[0]!r}")
    return cast(Grammar, found)
