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

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec

KINDS = (*WRITERS, "state")
LONGEST = 20  # seconds of CPU that one may take
MOST = 512 << 20  # bytes that memory may grow by
END = 400  # bytes at the end of a file, where some formats have what others have at the beginning
LARGEST = 1 << 20  # bytes a reader may be asked for; more would be a memory blow-up
WORDS = [b"0", b"-1", b"9" * 25, b"(", b")", b",", b"{", b"}", b"'", b'"', b"\x00", b"\xff", b"<f4", b">f8", b"|O", b"NaN",
         b"1e9", b"True", b"_scale", b"shape",
         b"descr", b"F32", b"F8_E4M3", b"data_offsets", b"[0,0]", b"\x93NUMPY", b" " * 70]  # fmt: skip


def mutated(good, rng):
    """The bytes with one to three changes: a bit, a byte, a cut, words put in or over, a piece doubled or left out."""
    data = bytearray(good)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, max(1, min(len(data), 200 if rng.random() < 0.7 else len(data)))))
        kind = rng.integers(0, 7)
        word = WORDS[rng.integers(len(WORDS))]
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = word
        elif kind == 4:
            data[at : at + len(word)] = word
        elif kind == 5:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
        else:
            del data[at : at + int(rng.integers(1, 40))]
    return bytes(data)


def read_all(spec):
    """Open and read to the end; the rows read."""
    with open_inputs(spec, need_q=False) as inputs:
        total = 0
        for tensor in {id(h.tensor): h.tensor for h in (inputs.k, inputs.v)}.values():
            if tensor.outer * tensor.width * 8 * 3 > LARGEST:
                continue
            items = DTYPES[tensor.dtype].holder
            at = 0
            while at < 100 and (got := tensor.read_into(np.empty((tensor.outer, 3, tensor.width), items), at)):
                at += got
            total += at
        return total


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
