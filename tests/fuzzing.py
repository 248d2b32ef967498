"""Mutations of files of every format (scripts/fuzz_formats): a process for each format, so that a crash is found, too."""

import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from formatfiles import WRITERS, small
from test_rows_mutations import mutated, read_all

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.spec import InputSpec

KINDS = (*WRITERS, "state")
LONGEST = 20  # seconds of CPU that one may take
MOST = 512 << 20  # bytes that memory may grow by
END = 400  # bytes at the end of a file, where some formats have what others have at the beginning


def damaged(good, rng):
    """The bytes with changes: at the beginning or anywhere, or near the end."""
    if rng.random() < 0.4 and len(good) > END:
        return good[:-END] + mutated(good[-END:], rng)
    return mutated(good, rng)


def fuzz(kind, count, seed):
    """Damage a file of a format `count` times; (how many were read, how many refused). Raises what nobody may raise."""
    rng, told = np.random.default_rng([seed, *kind.encode()]), [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        path = small(folder, kind)
        files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
        good = {file: file.read_bytes() for file in files}
        layout = "HTD" if kind == "turned.pt" else None
        spec = InputSpec(str(path), group="layers.0" if kind == "state" else None, layout=layout)
        for number in range(count):
            file = files[rng.integers(len(files))]
            data = damaged(good[file], rng)
            file.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, LONGEST)  # whose signal ends the process, wherever it is
            try:
                read_all(spec)
                told[0] += 1
            except (InputMalformed, InputMissing, UsageError) as error:
                assert str(error), "an error without words"
                told[1] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzzed-{seed}-{number}.{kind}"
                kept.write_bytes(data)
                print(
                    f"{kind}: mutation {number} of seed {seed}, {file.relative_to(folder)}, kept as {kept}", flush=True
                )
                raise
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            file.write_bytes(good[file])
    return told


def _one(kind, count, seed):
    warnings.simplefilter("ignore")
    fuzz(kind, 3, seed)  # what is loaded once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    read, refused = fuzz(kind, count, seed)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    seconds = time.monotonic() - started
    print(
        f"{kind:24} {read:6} read {refused:6} refused, {grown >> 20} MiB, {1000 * seconds / count:.1f} ms each",
        flush=True,
    )
    assert grown < MOST, f"memory grew by {grown} bytes"


def main():
    """All formats, each in a process of its own."""
    given = [int(word) for word in sys.argv[1:]]
    count, seed = [*given, *(50000, 0)[len(given) :]]
    failed = []
    for kind in KINDS:
        each = -(-count // len(KINDS))
        done = subprocess.run([sys.executable, __file__, "--one", kind, str(each), str(seed)])
        if done.returncode:
            failed.append(f"{kind} ({done.returncode})")  # below 0: a signal; the file is left in a temporary folder
    print(f"failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
