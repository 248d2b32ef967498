"""sketches/METHODS.md: every equation that is cited exists, and every number is given once."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
METHODS = TOP / "streamattn_cli" / "sketches" / "METHODS.md"
DEFINED = re.compile(r"^\*\*\(([A-Z]\d+)\)\*\* ", re.MULTILINE)
NUMBER = re.compile(r"\(([A-Z]\d+)\)")
CITATION = re.compile(r"METHODS\.md((?:(?:,| and| to)? ?\([A-Z]\d+\))*)", re.IGNORECASE)


def faults(methods, sources):
    """What is wrong with the numbers in the text of METHODS.md and with the citations in {name: text} of sources."""
    numbers = DEFINED.findall(methods)
    found = [f"{n} is given more than once" for n in sorted(set(numbers)) if numbers.count(n) > 1]
    for letter in {n[0] for n in numbers}:
        counts = [int(n[1:]) for n in numbers if n[0] == letter]
        if counts != list(range(1, len(counts) + 1)):
            found.append(f"{letter} does not count up from 1")
    found += [f"METHODS.md refers to {n}" for n in NUMBER.findall(methods) if n not in numbers]
    for name, text in sources.items():
        for citation in CITATION.finditer(text):
            cited = NUMBER.findall(citation[1])
            if not cited or not citation[0].startswith("METHODS.md"):
                found.append(f"{name} cites {citation[0]!r} without an equation")
            found += [f"{name} cites {n}" for n in cited if n not in numbers]
    return found


def sources():
    """Every Python file that may cite: package, tests but this one, scripts."""
    paths = [p for room in ("streamattn_cli", "tests", "scripts") for p in (TOP / room).rglob("*.py")]
    return {str(p.relative_to(TOP)): p.read_text() for p in paths if p != Path(__file__)}


def test_every_citation_has_its_equation():
    found = sources()
    assert faults(METHODS.read_text(), found) == []
    assert sum("METHODS.md (" in text for text in found.values()) >= 15  # the search finds them


@pytest.mark.parametrize(
    "methods, code, fault",
    [
        ("**(N1)** a", "see METHODS.md (N2)", "x.py cites N2"),
        ("**(N1)** a", "see METHODS.md (N1), (N7)", "x.py cites N7"),
        ("**(N1)** a", "see METHODS.md 3.1", "x.py cites 'METHODS.md' without an equation"),
        ("**(N1)** a", "see methods.md (N1)", "x.py cites 'methods.md (N1)' without an equation"),
        ("**(N1)** a\n\n**(N1)** b", "", "N1 is given more than once"),
        ("**(N1)** a\n\n**(N3)** b", "", "N does not count up from 1"),
        ("**(N1)** by (P4)", "", "METHODS.md refers to P4"),
    ],
)
def test_a_planted_fault_is_found(methods, code, fault):
    assert fault in faults(methods, {"x.py": code})


def test_what_is_right_passes():
    assert faults("**(N1)** a\n\n**(N2)** by (N1)", {"x.py": "(METHODS.md (N1) to (N2); WildCat)"}) == []
