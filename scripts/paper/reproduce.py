"""One command that measures the source paper's claims; see scripts/reproduce_paper."""

from __future__ import annotations

import sys
import time

PARTS = {
    "speed": ("accuracy", "speed"),
    "psi": ("accuracy", "psi_error_against_size"),
    "rows": ("accuracy", "error_against_rows"),
    "polynomial": ("polynomial", "error_against_degree"),
    "recovery": ("recovery", "recovery_against_size"),
    "decoders": ("recovery", "decoders"),
    "guarantee": ("recovery", "guarantee"),
    "words": ("memory", "words_against_rows"),
    "memory": ("memory", "memory_against_rows"),
}


def main(wanted: list[str]) -> None:
    """Run the parts wanted (all of them), and say how long each took."""
    from importlib import import_module

    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        sys.exit(f"reproduce_paper: no part called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part in wanted or PARTS:
        began = time.monotonic()
        module, function = PARTS[part]
        getattr(import_module(module), function)()
        print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
