"""Sampled turns of exchanges to exact sequences, each sampled token trained once.

A turn continues a sequence if its prompt begins with all of the sequence's tokens and its context is the same. Several
sequences may qualify; the longest is continued. Any other turn begins a sequence: its prompt, untrained, and its own
tokens. So histories that share turns become branches, and a template that drops thinking splits a conversation.

A token may arrive more than once: a request was captured twice, or several choices begin with the same tokens. It is
the same if it stands after the same tokens and the same version sampled it, and trains with its first occurrence.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tandem.rl.exchanges.generations import Generation
from tandem.rl.tokens.drafts import Draft

ID_BYTES = 8


class Branches:
    """The sequences of a trajectory. `add` its turns in order of time."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.num_repeated = 0
        """Sampled tokens that another turn trains already."""
        # A sequence is found by its context, length and digest; comparing with each would take quadratic time.
        self._ends: dict[tuple[str, bytes], Draft] = {}
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)
        self._sampled: defaultdict[int | None, set[bytes]] = defaultdict(set)

    def add(self, generation: Generation) -> None:
        """Continue a sequence by a sampled turn, or begin one."""
        turn, context = generation.turn, generation.context
        assert turn.prompt_token_ids is not None, "readers refuse turns without a prompt"
        parent, digest = self._longest(context, turn.prompt_token_ids)
        trained, end = self._first_occurrences(turn.token_ids, digest, self._sampled[generation.policy_version])
        self.num_repeated += int((~trained).sum())
        if not trained.any():
            return
        draft = Draft() if parent is None else self._ends.pop((context, parent))
        if parent is None:
            self.drafts.append(draft)
        draft.add_context(turn.prompt_token_ids[len(draft.token_ids) :])
        draft.add_turn(replace(turn, policy_version=generation.policy_version), trained)
        self._ends.setdefault((context, end), draft)
        self._lengths[context].add(len(draft.token_ids))

    def _longest(self, context: str, prompt: list[int]) -> tuple[bytes | None, hashlib.blake2b]:
        """Return the digest of the longest sequence that begins `prompt`, None without one, and that of `prompt`."""
        content, digest, parent, start = _bytes(prompt), _new_digest(), None, 0
        for length in sorted(one for one in self._lengths[context] if one <= len(prompt)):
            digest.update(content[start : length * ID_BYTES])
            start = length * ID_BYTES
            if (context, digest.digest()) in self._ends:
                parent = digest.digest()
        digest.update(content[start:])
        return parent, digest

    @staticmethod
    def _first_occurrences(
        ids: Sequence[int], digest: hashlib.blake2b, sampled: set[bytes]
    ) -> tuple[np.ndarray, bytes]:
        """Return which tokens after the digest's are new in `sampled`, which then has all, and the digest of all."""
        content, trained = _bytes(ids), np.empty(len(ids), bool)
        for index in range(len(ids)):
            digest.update(content[index * ID_BYTES : (index + 1) * ID_BYTES])
            path = digest.digest()
            trained[index] = path not in sampled
            sampled.add(path)
        return trained, digest.digest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, "<i8").tobytes()
