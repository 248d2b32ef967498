"""Sizes, rates and durations, as people write and read them."""

import math
import re

from streamattn_cli.errors import UsageError

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?|[0-9]+\.)\s*([a-z]*)\s*", re.IGNORECASE)


def _factors() -> dict[str, int]:
    """Unit words in lower case: k, kib = 2^10, kb = 10^3, and so on up to p."""
    factors = {"": 1, "b": 1}
    for power, letter in enumerate("kmgtp", start=1):
        factors[letter] = factors[letter + "ib"] = 1024**power
        factors[letter + "b"] = 1000**power
    return factors


_FACTORS = _factors()


def parse_size(text: str) -> int:
    """Bytes meant by '512MiB', '64M', '1e9', '2g' or '1.5 GB': M and MiB are 2^20, MB is 10^6, case does not matter.

    Raises UsageError for anything else, for less than one byte and for more than 2^63 - 1.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    number = float(match[1]) if match else 0.0
    if factor is None or not math.isfinite(number) or not 1 <= number * factor < 2**63:
        raise UsageError(f"{text!r} is not a size: write a number and a unit, such as 512MiB, 64M, 2G or 1e9")
    return int(number * factor)


def parse_count(text: str, option: str) -> int:
    """'1e9' as 1000000000. Raises UsageError, which names the option, for anything but a whole number above 0."""
    try:
        count = float(text)
    except ValueError:
        count = 0.5
    if not math.isfinite(count) or count != int(count) or count < 1:
        raise UsageError(f"{option} {text}: give a whole number above 0, such as 1000000 or 1e9")
    return int(text) if text.isdigit() else int(count)


def format_bytes(count: float) -> str:
    """'512 B', '38.1 MiB', '2.00 GiB'."""
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(_BINARY) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_three_digits(value)} {_BINARY[unit]}"


def format_count(count: float) -> str:
    """Short form for bars: '950', '1.25 k', '38.1 M', '2.00 G'."""
    value, letter = float(count), ""
    for step in ("k", "M", "G", "T"):
        if abs(value) < 999.5:
            break
        value, letter = value / 1000, " " + step
    if not letter:
        return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.1f}"
    return _three_digits(value) + letter


def format_duration(seconds: float) -> str:
    """'0.42 s', '12.3 s', '3 min 05 s', '2 h 03 min', '4 d 02 h'."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, word, small, small_word in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {word} {whole % size // small:02d} {small_word}"
    return f"{whole} s"


def is_timed(seconds: float) -> bool:
    """Whether a time is long enough to be shown as more than 0.00 s, and to divide by."""
    return seconds >= 0.005


def format_clock(seconds: float) -> str:
    """'0:42', '3:05', '2:03:00': short, for a bar."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def _three_digits(value: float) -> str:
    """Three significant digits of a number below 1000 (1023 for bytes)."""
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"
