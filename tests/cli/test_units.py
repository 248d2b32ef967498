import pytest

from streamattn_cli.errors import UsageError
from streamattn_cli.units import format_bytes, format_clock, format_count, format_duration, parse_count, parse_size


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1", 1),
        ("512MiB", 512 << 20),
        ("64M", 64 << 20),
        ("64MB", 64_000_000),
        ("1e9", 10**9),
        ("2g", 2 << 30),
        ("1.5 GB", 1_500_000_000),
        (".5k", 512),
        ("10b", 10),
        ("3TiB", 3 << 40),
        (" 7 kib ", 7168),
    ],
)
def test_sizes_that_people_write(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "0", "0.1", "1e", "nan", "inf", "1 XB", "1MiBs", "1e30", "1,5G", "2**30"]
)
def test_what_is_no_size_is_a_usage_error_that_says_what_would_be(text):
    with pytest.raises(UsageError, match="is not a size: .* such as 512MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    "count, expected",
    [(0, "0 B"), (999, "999 B"), (1024, "1.00 KiB"), (1000, "0.98 KiB"), (40 << 20, "40.0 MiB"), (2**60, "1024 PiB"),
     ((1 << 20) - 1, "1.00 MiB"), (200 * 2**30, "200 GiB")],
)  # fmt: skip
def test_bytes(count, expected):
    assert format_bytes(count) == expected


@pytest.mark.parametrize(
    "count, expected",
    [(0, "0"), (0.5, "0.5"), (999, "999"), (999.6, "1.00 k"), (1.25e6, "1.25 M"), (3e13, "30.0 T")],
)
def test_counts(count, expected):
    assert format_count(count) == expected


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (0, "0.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7380, "2 h 03 min"),
        (352800, "4 d 02 h"),
    ],
)
def test_durations(seconds, expected):
    assert format_duration(seconds) == expected


@pytest.mark.parametrize("seconds, expected", [(0, "0:00"), (59.6, "1:00"), (185, "3:05"), (7380, "2:03:00")])
def test_clock(seconds, expected):
    assert format_clock(seconds) == expected


def test_counts_that_are_given():
    assert (parse_count("1e9", "--rows"), parse_count("12345678901234567891", "--rows")) == (
        10**9,
        12345678901234567891,
    )
    for text in ("0", "-3", "1.5", "many", "inf", "nan", ""):
        with pytest.raises(UsageError, match=r"--rows .*: give a whole number above 0"):
            parse_count(text, "--rows")
