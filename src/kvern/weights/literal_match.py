"""Find a fixed set of strings in a text: leftmost first, longest at one place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kvern.core.errors import ModelFileError

_TrieNode = dict[str, "_TrieNode"]
_END = ""


class LiteralMatcher:
    """Splits a text at known literals. Time is linear in the text for any vocabulary."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        self._pattern = re.compile(_trie_pattern(self._ids), re.DOTALL) if self._ids else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield runs of plain text (never empty) and the ids of the literals between them, in order."""
        if self._pattern is None:
            if text:
                yield text
            return
        done = 0
        for match in self._pattern.finditer(text):
            if match.start() > done:
                yield text[done : match.start()]
            yield self._ids[match[0]]
            done = match.end()
        if done < len(text):
            yield text[done:]


def _trie_pattern(literals: Mapping[str, int]) -> str:
    """One regular expression whose greedy match is the longest literal; a trie keeps it small and linear."""
    root: _TrieNode = {}
    for literal in literals:
        node = root
        for character in literal:
            node = node.setdefault(character, {})
        node[_END] = {}
    try:
        return _node_pattern(root)
    except RecursionError as error:
        raise ModelFileError(
            "too many added tokens are prefixes of each other (limit: about 200 in a chain)"
        ) from error


def _node_pattern(node: _TrieNode) -> str:
    chain = []
    while len(node) == 1 and _END not in node:
        [(character, node)] = node.items()
        chain.append(re.escape(character))
    head = "".join(chain)
    branches = [re.escape(character) + _node_pattern(child) for character, child in node.items() if character != _END]
    if not branches:
        return head
    return f"{head}(?:{'|'.join(branches)}){'?' if _END in node else ''}"
