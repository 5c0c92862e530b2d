"""Rows that share prefixes as one row of unique tokens: a trie of stretches, laid out depth first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch

from forkgym.trainers.forward.measures import Row

# Prompts that begin alike share their beginning where it is at least as long as this, tokens: shorter ones cost more
# calls than they save.
SHORTEST_SHARED = 32
TOKEN_IDS = 2**32  # above any token id


@dataclass(frozen=True, slots=True)
class Node:
    """A stretch of tokens that some rows share, with its place in the row of unique tokens.

    Attributes:
        parent: The stretch before it, -1 for the first of a tree.
        start: Its first token.
        end: After its last token.
        exit: After the last token of all stretches below it.
        depth: Tokens before it on its path: the position of its first token.
    """

    parent: int
    start: int
    end: int
    exit: int
    depth: int


@dataclass(frozen=True, slots=True)
class Forest:
    """Rows as paths through a trie; depth first, so a subtree is one slice of the row of unique tokens.

    Rows ``1 2 3 4``, ``1 2 5 6`` and ``1 2 5 7`` with turns of one token after the prompt ``1 2``::

        1 2 ─┬─ 3 ─── 4         unique tokens  1 2 3 4 5 6 7
             └─ 5 ─┬─ 6         positions      0 1 2 3 2 3 3
                   └─ 7         paths          (0, 1, 2) (0, 3, 4) (0, 3, 5)

    Attributes:
        nodes: Parents before children, in order of their tokens.
        paths: The nodes of each row, from the root.
    """

    nodes: tuple[Node, ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Unique tokens."""
        return self.nodes[-1].end


@dataclass(frozen=True, slots=True)
class Layout:
    """The row of unique tokens as tensors.

    One position may predict several tokens: the last of a stretch predicts the first of each stretch after it. A token
    that two rows sampled in the same place counts once.

    Attributes:
        tokens_U: Unique tokens.
        positions_U: How many tokens are before each on its path.
        predictors_N: For each unique sampled token, the place of the token before it, ascending.
        targets_N: The unique sampled tokens: those that some row sampled.
        index_BT: For each place of the padded rows, which of the N it is; N where nothing was sampled.
    """

    tokens_U: torch.Tensor
    positions_U: torch.Tensor
    predictors_N: torch.Tensor
    targets_N: torch.Tensor
    index_BT: torch.Tensor


def grow_forest(rows: Sequence[Row]) -> Forest:
    """Share what rows have in common: a stretch is the same where all before it is and its tokens are.

    A stretch is a turn with its reply, or a prompt; prompts that begin alike are cut where they part. Linear in the
    tokens.
    """
    cuts = prompt_cuts({row.tokens[: row.starts[0]] if row.starts else row.tokens for row in rows})
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    children: list[list[int]] = []
    lengths: list[int] = []
    roots: list[int] = []
    paths = list[list[int]]()
    for row in rows:
        prompt = row.tokens[: row.starts[0]] if row.starts else row.tokens
        path, parent = list[int](), -1
        for start, end in pairwise((0, *cuts[prompt], *row.starts, len(row.tokens))):
            stretch = row.tokens[start:end]
            node = numbers.setdefault((parent, stretch), len(numbers))
            if node == len(children):
                (children[parent] if path else roots).append(node)
                children.append([])
                lengths.append(len(stretch))
            path.append(node)
            parent = node
        paths.append(path)
    return depth_first(roots, children, lengths, paths)


def prompt_cuts(prompts: set[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Where each prompt parts from others that begin alike, ascending.

    In sorted order, what two prompts share is the least of what the neighbours between them share.
    """
    ordered = sorted(prompts)
    shared = [common_length(*pair) for pair in pairwise(ordered)]
    cuts: dict[tuple[int, ...], tuple[int, ...]] = {}
    for place, prompt in enumerate(ordered):
        kept = [0]
        for cut in sorted({*accumulate(shared[place:], min), *accumulate(reversed(shared[:place]), min)}):
            if cut - kept[-1] >= SHORTEST_SHARED and cut < len(prompt):
                kept.append(cut)
        cuts[prompt] = tuple(kept[1:])
    return cuts


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many places two sequences agree in from the start."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def depth_first(
    roots: Sequence[int], children: Sequence[Sequence[int]], lengths: Sequence[int], paths: Sequence[Sequence[int]]
) -> Forest:
    """Number the nodes anew, depth first, and give them their places."""
    order = list[int]()
    waiting = list(reversed(roots))
    while waiting:
        order.append(waiting.pop())
        waiting += reversed(children[order[-1]])
    number = {node: place for place, node in enumerate(order)}
    parents = {child: node for node in order for child in children[node]}
    sizes = list(lengths)  # of whole subtrees
    for node in reversed(order):
        if node in parents:
            sizes[parents[node]] += sizes[node]
    nodes = list[Node]()
    start = 0
    for node in order:
        parent = number[parents[node]] if node in parents else -1
        depth = nodes[parent].depth + nodes[parent].end - nodes[parent].start if parent >= 0 else 0
        nodes.append(Node(parent, start, start + lengths[node], start + sizes[node], depth))
        start += lengths[node]
    return Forest(tuple(nodes), tuple(tuple(number[node] for node in path) for path in paths))


def without_tails(forest: Forest, rows: Sequence[Row]) -> Forest:
    """Leave out what no log-prob needs: each row from its last sampled token on, where no other row goes on there.

    The state of a token predicts the one after it, so that of the last sampled one predicts nothing. The first token of
    a row stays in any case.
    """
    lengths = [0] * len(forest.nodes)
    for row, path in zip(rows, forest.paths, strict=True):
        needed = len(row.tokens) - 1 - row.loss_mask[::-1].index(True) if True in row.loss_mask else 1
        for number in path:
            node = forest.nodes[number]
            lengths[number] = max(lengths[number], min(node.end - node.start, needed - node.depth))
    roots = list[int]()
    children: list[list[int]] = [[] for _ in lengths]
    for number, node in enumerate(forest.nodes):
        if lengths[number]:
            (roots if node.parent < 0 else children[node.parent]).append(number)
    paths = [[number for number in path if lengths[number]] for path in forest.paths]
    return depth_first(roots, children, lengths, paths)


def lay_out(forest: Forest, rows: Sequence[Row], device: torch.device) -> Layout:
    """Make the tensors of a forest of rows, whole or `without_tails`."""
    unique = forest.num_tokens
    tokens, positions = [0] * unique, [0] * unique
    keys = list[torch.Tensor]()
    arange_U = torch.arange(unique)
    placed = set[int]()
    masks = [torch.tensor(row.loss_mask) for row in rows]
    for row, path, mask_T in zip(rows, forest.paths, masks, strict=True):
        nodes = [forest.nodes[number] for number in path]
        for node in nodes:
            if node.start not in placed:
                placed.add(node.start)
                size = node.end - node.start
                tokens[node.start : node.end] = row.tokens[node.depth : node.depth + size]
                positions[node.start : node.end] = range(node.depth, node.depth + size)
        places_T = torch.cat([arange_U[node.start : node.end] for node in nodes])
        sampled = mask_T.nonzero().squeeze(1)
        keys.append(places_T[sampled - 1] * TOKEN_IDS + torch.tensor(row.tokens)[sampled])
    keys_N, numbers = cast("tuple[torch.Tensor, torch.Tensor]", torch.unique(torch.cat(keys), return_inverse=True))
    index_BT = torch.full((len(rows), max(len(row.tokens) for row in rows)), len(keys_N))
    index_BT[torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)] = numbers
    return Layout(
        torch.tensor(tokens).to(device),
        torch.tensor(positions).to(device),
        (keys_N // TOKEN_IDS).to(device),
        (keys_N % TOKEN_IDS).to(device),
        index_BT.to(device),
    )
