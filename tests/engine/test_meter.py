import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

from streamattn_cli.engine.watch.meter import KERNELS, Meter, available_memory

MIB = 1 << 20


def alone(program, *words):
    """The numbers that a program of its own prints: in a test runner the interpreter gives memory back at any time."""
    start = "import sys, numpy as np\nfrom streamattn_cli.engine.watch import meter\nMIB = 1 << 20\n"
    done = subprocess.run(
        [sys.executable, "-c", start + program, *map(str, words)], capture_output=True, check=True, text=True
    )
    return [int(number) for number in done.stdout.split()]


def test_memory_that_is_gone_before_anyone_looks_is_seen():
    program = """
with meter.Meter(interval=3600) as watch:
    held = np.ones(48 * MIB, np.uint8)
    del held
    print(watch.now(), watch.peak())
    held = np.ones(96 * MIB, np.uint8)
    del held
print(watch.peak())
"""
    now, peak, after = alone(program)
    assert 47 * MIB <= peak < 56 * MIB and now < 24 * MIB
    assert 95 * MIB <= after < 104 * MIB  # still answers after the end


def test_a_peak_of_file_pages_is_none(tmp_path):
    path = tmp_path / "pages"
    path.write_bytes(bytes(64 * MIB))
    program = """
with meter.Meter(interval=3600) as watch:
    mapped = np.memmap(sys.argv[1], np.uint8, "r")
    assert int(mapped.sum()) == 0
    held = np.ones(16 * MIB, np.uint8)
    watch.now()
    del held
print(watch.peak())
"""
    (peak,) = alone(program, path)
    assert 15 * MIB <= peak < 32 * MIB


def test_what_was_held_before_is_no_peak():
    held = np.ones(64 * MIB, np.uint8)
    del held
    with Meter(interval=3600) as meter:
        pass
    assert meter.peak() < 8 * MIB


def test_where_the_kernel_keeps_no_record_the_looks_count():
    program = """
meter.CLEAR = "/proc/nowhere"
with meter.Meter(interval=3600) as watch:
    held = np.ones(48 * MIB, np.uint8)
    watch.now()
    del held
print(watch.peak())
"""
    (peak,) = alone(program)
    assert 47 * MIB <= peak < 56 * MIB


def test_file_pages_do_not_count(tmp_path):
    path = tmp_path / "pages"
    path.write_bytes(bytes(32 * MIB))
    with Meter() as meter:
        mapped = np.memmap(path, np.uint8, "r")
        assert int(mapped.sum()) == 0
        assert meter.now() < 16 * MIB


def test_the_sampler_thread_ends_with_the_meter():
    with Meter():
        assert any(t.name == "memory-meter" for t in threading.enumerate())
    assert not any(t.name == "memory-meter" for t in threading.enumerate())


def test_baseline_is_what_was_held_before():
    held = np.ones(16 * MIB, np.uint8)
    with Meter() as meter:
        assert meter.baseline >= held.nbytes


def _machine(tmp_path, available_kib, membership):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:  {available_kib} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
    return tmp_path / "proc", tmp_path / "cgroup"


def _group(folder, names, limit, usage, stat=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(stat)


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.parametrize(
    "limits, expected",
    [
        ({}, 1000 * 1024),
        ({"a/b": ("max", 5)}, 1000 * 1024),
        ({"a/b": (5000, 2000)}, 3000),
        ({"a": (4000, 3000), "a/b": (5000, 2000)}, 1000),
        ({"a/b": (1000, 2000)}, 0),
        ({"": (700, 100)}, 600),
        ({"elsewhere": (700, 100)}, 1000 * 1024),
    ],
)
def test_cgroup_v2_limits_of_every_parent_count(tmp_path, limits, expected):
    proc, cgroup = _machine(tmp_path, 1000, "0::/a/b\n")
    for name, (limit, usage) in limits.items():
        _group(cgroup / name, V2, limit, usage)
    assert available_memory(proc, cgroup) == expected


def test_page_cache_that_can_be_given_back_is_available(tmp_path):
    proc, cgroup = _machine(tmp_path, 1000, "0::/\n")
    _group(cgroup, V2, 5000, 4000, "anon 1\ninactive_file 2500\n")
    assert available_memory(proc, cgroup) == 3500


def test_cgroup_v1(tmp_path):
    proc, cgroup = _machine(tmp_path, 1000, "5:cpu:/x\n4:hugetlb,memory:/docker/1\n")
    _group(cgroup / "memory", V1, 9000, 4000, "total_inactive_file 500\n")
    assert available_memory(proc, cgroup) == 5500
    _group(cgroup / "memory" / "docker" / "1", V1, 2**63 - 4096, 4000)
    assert available_memory(proc, cgroup) == 5500


def test_a_limit_of_addresses_counts(tmp_path, monkeypatch):
    """ulimit -v of a batch system; kernels that are still to be loaded need some of it."""
    proc, cgroup = _machine(tmp_path, 1 << 30, "0::/\n")
    (proc / "self" / "statm").write_text("1000 500 0 0 0 0 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 30, 1 << 30))
    left = (1 << 30) - 1000 * resource.getpagesize()
    monkeypatch.setitem(sys.modules, "numba", sys)
    assert available_memory(proc, cgroup) == left
    monkeypatch.delitem(sys.modules, "numba")
    assert available_memory(proc, cgroup) == left - KERNELS


def test_nothing_known_is_none(tmp_path):
    assert available_memory(tmp_path / "no", tmp_path / "nothing") is None


def test_this_machine_says_something():
    assert available_memory() > 0
