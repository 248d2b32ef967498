"""Where queries stand beside the keys: causal attention of fewer queries than keys, as in chunked prefill and decoding."""

from __future__ import annotations

import numpy as np

from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.rows.tensors.heads import Heads, refuse_pipes

BEFORE = "the keys before the first query are read before it"


def beside_key(word: str | None, causal: bool, q: Heads, k: Heads, notes: list[str]) -> int:
    """The row of keys that query 0 sees last, from the word of --first-query; 0 for full attention.

    Without a word the last query sees the last key, and a note says so where that is not row 0. Raises UsageError (2),
    InputMalformed (4) where queries would reach beyond the keys, and CannotMeet (11) for pipes and several sequences.
    """
    if not causal:
        if word is not None:
            notes.append("--first-query has no meaning for full attention: every query sees all keys")
        return 0
    if k.sequences and q.sequences != k.sequences:
        _check_several(word, q, k)
        notes.append(
            "sequences with fewer queries than keys: the last query of each sees its last key (--first-query end)"
        )
        return 0
    first = _row(word, q, k)
    if first == 0:
        if q.rows is not None and k.rows is not None and q.rows < k.rows and word is not None:
            notes.append(f"keys from row {q.rows} on are seen by no query (--first-query {word})")
        return 0
    if k.sequences:
        raise CannotMeet(
            f"{k.tensor.name}: --first-query is for one sequence, here are {len(k.several)}; choose its rows with --rows "
            "and --q-rows"
        )
    refuse_pipes((k, q), BEFORE)
    if word is None:
        notes.append(
            f"{q.count} queries and {k.count} keys: the last query sees the last key, the first one keys up to row {first} "
            "(--first-query)"
        )
    return first


def _check_several(word: str | None, q: Heads, k: Heads) -> None:
    """Refuse sequences whose queries cannot stand beside their last keys."""
    if word not in (None, "end"):
        raise CannotMeet(
            f"{k.tensor.name}: --first-query {word}: in several sequences with fewer queries than keys the last query sees the "
            "last key; omit it, or choose the rows of one sequence with --rows and --q-rows"
        )
    rows, keys = np.diff(q.several.edges), np.diff(k.several.edges)
    wrong = np.flatnonzero(rows > keys)
    if len(wrong):
        at = int(wrong[0])
        raise InputMalformed(
            f"{q.tensor.name}: sequence {at} has {rows[at]} queries and {keys[at]} keys; in causal attention every query stands "
            "beside a key (--full, or say how many rows count: --q-lengths, --q-starts)"
        )
    refuse_pipes((k, q), BEFORE)


def _row(word: str | None, q: Heads, k: Heads) -> int:
    """The row, between 0 and where the last query is beside the last key."""
    several = q.sequences or k.sequences
    known = None not in (q.rows, k.rows)
    if word is None or word == "end":
        if not known:
            if word is None:
                return 0
            raise UsageError("--first-query end: the input does not say how many rows will come; give a row")
        first = 0 if several else k.count - q.count
    else:
        try:
            first = int(word)
        except ValueError:
            first = -1
        if first < 0:
            raise UsageError(f"--first-query {word}: it must be a row of the keys, 0 or more, or end")
    if known and not several and not 0 <= first <= k.count - q.count:
        raise InputMalformed(
            f"{q.tensor.name} has {q.rows} rows and {k.tensor.name} {k.rows}; in causal attention every query stands beside a "
            f"key{f', here from row {first} on' if first > 0 else ''} (use --full, or choose rows with --rows, --q-rows and "
            "--first-query)"
        )
    return first
