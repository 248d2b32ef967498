"""How often does a 95% interval of the audit hold the true error? Trials on heads whose every row is known.

    .venv/bin/python scripts/audit_intervals.py FILE.h5 ... --trials 500 --rows 64,256 [--share 0.01] [--made]

For every file and group of query heads the answers to all rows are computed once, exactly and by `nystrom` within a share
of the rows; with --made those of two made-up streams as well: one with few long queries, which `poly` answers with and
without a bound on logits that shortens them, and one whose values have a Pareto(1.5) norm. Then each trial chooses its own
sample, as `--audit` would, and estimates the error. Prints coverage by case, with the share of trials that said "not enough
rows to tell" (they count as covered), and the median width of an interval.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np

from streamattn_cli.engine.audit.audit import ANSWER, DOUBT, FACTS, facts_of_rows
from streamattn_cli.engine.audit.estimate import Design, Strata, estimate
from streamattn_cli.engine.audit.sample import SizeSample
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.passes.output import Output
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import Answers
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec


def answers(spec: InputSpec, folder: str, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    """All outputs (rows, heads, dim) float64, and their doubt (rows, heads)."""
    kept: list[tuple] = []
    tell = Output._tell

    def keep(output: Output, start: int, block: Answers, q: object = None) -> None:
        if start == 0:
            kept.clear()
        kept.append((block.rows.copy(), block.doubt.copy()))
        tell(output, start, block, q)

    Output._tell = keep
    try:
        request = AttendRequest(
            spec, output=f"{folder}/out.npy", audit=0, max_error=float("inf"), force=True, **settings
        )
        with Interrupts() as interrupts:
            attend(request, lambda event: None, interrupts)
    finally:
        Output._tell = tell
    return tuple(np.concatenate(parts) for parts in zip(*kept, strict=True))


def trials(exact: np.ndarray, found: np.ndarray, doubt: np.ndarray, rows: int, count: int) -> tuple:
    """Shares of trials whose interval is too high, too low, told to be unknown; and the median of high / low."""
    wrong, size = (((x**2).sum(axis=(1, 2)))[:, None] for x in (found.astype("f8") - exact, exact.astype("f8")))
    truth, facts = np.sqrt(wrong.sum() / size.sum()), facts_of_rows(found, doubt)
    results = []
    for seed in range(count):
        by_size = rows // 4
        strata = Strata.of(len(exact), rows - 2 * by_size)
        chosen, samples = [strata.draw(seed)], {}
        for by in (ANSWER, DOUBT):
            samples[by] = sample = SizeSample(by_size, 8 * seed + by, 1, 1, FACTS, 0, "f4")
            sample.offer(0, facts[:, by], facts, np.zeros((len(exact), 1, 1), "f4"))
            chosen.append(sample.rows[sample.chosen])
        union = np.unique(np.concatenate(chosen))
        missed = 1 - strata.chances(union)
        for by, sample in samples.items():
            missed = missed * (1 - sample.chances(union, facts[union, by]))
        (e,) = estimate(wrong[union], size[union], Design(union, 1 - missed, len(exact)))
        results.append(
            (e.enough and e.low > truth, e.enough and e.high < truth, not e.enough, e.high / max(e.low, 1e-300))
        )
    high, low, told, width = zip(*results, strict=True)
    return truth, np.mean(high), np.mean(low), np.mean(told), np.median(width)


def cases(words: argparse.Namespace):
    """(name, exact, found, doubt) of every file, all query heads of one key head at a time."""
    for file in words.files:
        spec = InputSpec(input=file)
        with open_inputs(spec) as inputs:
            rows, heads, group = inputs.k.rows, len(inputs.q), len(inputs.q) // len(inputs.k)
        for resident in words.resident or [max(64, int(rows * words.share))]:
            exact, _ = answers(spec, words.folder, method="exact")
            found, doubt = answers(spec, words.folder, method="nystrom", resident_rows=resident)
            for a in range(0, heads, group if not words.single else 1):
                b = a + (1 if words.single else group)
                yield f"{Path(file).stem} R={resident} heads {a}-{b - 1}", exact[:, a:b], found[:, a:b], doubt[:, a:b]


def made_up(words: argparse.Namespace):
    """The same of made-up streams, whose rows that weigh much are rare."""
    rng = np.random.default_rng(12)
    rows, dim = 1 << 15, 4
    k, v = ((rng.standard_normal((rows, dim)) * size).astype("f4") for size in (0.4, 1.0))
    v[:64], k[:64] = 30, 1.5
    q = (rng.standard_normal((rows, dim)) * 0.05).astype("f4")
    q[rng.choice(rows, 16, replace=False)] = 1.7
    spec = _saved(words.folder, q, k, v)
    exact, _ = answers(spec, words.folder, method="exact", causal=False)
    for beta in (None, 1.0):
        found, doubt = answers(spec, words.folder, method="poly", degree=6, beta=beta, causal=False)
        yield f"long queries, poly, beta {beta}", exact, found, doubt
    q, k, v = rng.standard_normal((3, rows // 4, 16)).astype("f4")
    v *= (rng.pareto(1.5, len(v)) + 1)[:, None].astype("f4")
    spec = _saved(words.folder, q, k, v)
    exact, _ = answers(spec, words.folder, method="exact", causal=True)
    found, doubt = answers(spec, words.folder, method="nystrom", resident_rows=256, causal=True)
    yield "Pareto(1.5) values, nystrom R=256", exact, found, doubt


def _saved(folder: str, *arrays: np.ndarray) -> InputSpec:
    files = {part: f"{folder}/{part}.npy" for part in "qkv"}
    for file, array in zip(files.values(), arrays, strict=True):
        np.save(file, array)
    return InputSpec(**files)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--made", action="store_true", help="made-up streams, too")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--rows", default="64,256")
    parser.add_argument("--share", type=float, default=0.01, help="resident rows as a share of all rows")
    parser.add_argument(
        "--resident", type=lambda text: [int(word) for word in text.split(",")], help="or their numbers"
    )
    parser.add_argument("--single", action="store_true", help="every query head is a case of its own")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for outputs that are thrown away")
    words = parser.parse_args()
    print("case | audited rows: coverage (too high, too low, told unknown; median high / low)")
    least: dict[int, float] = {}
    for name, exact, found, doubt in chain(cases(words), made_up(words) if words.made else ()):
        line = []
        for rows in map(int, words.rows.split(",")):
            truth, high, low, told, width = trials(exact, found, doubt, rows, words.trials)
            least[rows] = min(least.get(rows, 1.0), 1 - high - low)
            line.append(f"{rows}: {1 - high - low:.3f} ({high:.3f}, {low:.3f}, {told:.3f}; {width:.2f})")
        print(f"{name}, error {truth:.3f} | {' | '.join(line)}", flush=True)
    print("least coverage: " + ", ".join(f"{rows} rows {share:.3f}" for rows, share in least.items()))


if __name__ == "__main__":
    main()
