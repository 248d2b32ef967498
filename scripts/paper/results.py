"""Where numbers and figures go."""

from __future__ import annotations

import csv
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def keep(part: str, header: tuple[str, ...], rows: list[tuple]) -> None:
    """Write the raw numbers of one part as CSV."""
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / f"{part}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)


def figure(fig, name: str) -> None:
    """Write a figure."""
    FOLDER.mkdir(exist_ok=True)
    fig.save(FOLDER / f"{name}.svg")
