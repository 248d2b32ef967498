"""What a stream can show: whether it is a terminal that takes control codes, and how wide it is."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

PLAIN_TERMS = ("", "dumb", "unknown")


def is_live(stream: TextIO) -> bool:
    """True when the stream is a terminal that understands cursor movements."""
    try:
        return stream.isatty() and os.environ.get("TERM", "").lower() not in PLAIN_TERMS
    except ValueError:  # closed
        return False


def shows(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has all characters of the text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def columns(stream: TextIO) -> int:
    """Width to write to: $COLUMNS, else the terminal's own width, else 80."""
    if os.environ.get("COLUMNS", "").isdigit() and int(os.environ["COLUMNS"]) > 0:
        return int(os.environ["COLUMNS"])
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size((80, 24)).columns
