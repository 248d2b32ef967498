"""Texts as token ids."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError


def read_text(names: Sequence[str]) -> str:
    """The text of files, or of standard input ("-"), one after the other. Raises InputMissing, InputMalformed (not UTF-8)."""
    parts = []
    for name in names:
        try:
            if name == "-":
                raw = sys.stdin.buffer.read()
            else:
                with open(name, "rb") as file:
                    raw = file.read()
            parts.append(raw.decode())
        except OSError as error:
            raise InputMissing(f"{name}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InputMalformed(f"{name}: not a text in UTF-8 (byte {error.start}); give a text file") from None
    return "".join(parts)


def token_ids(tokenizer: Any, names: Sequence[str], tokens: int | None, least: int = 1) -> np.ndarray:
    """The ids (n,) int64 of the first `tokens` tokens of texts, or of all. InputMalformed for too few, UsageError where
    fewer than `least` are asked for."""
    if tokens and tokens < least:
        raise UsageError(f"--tokens {tokens}: must be at least {least}")
    ids = np.asarray(tokenizer(read_text(names), verbose=False)["input_ids"], np.int64)
    if len(ids) < (tokens or least):
        raise InputMalformed(
            f"{', '.join(names)}: {len(ids)} tokens found, {tokens or least} are needed; give more text, or fewer --tokens"
        )
    return ids[:tokens]
