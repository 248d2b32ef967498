"""What every sketch of one key head promises. A third party's method is tested by one line of its own:

    @pytest.mark.parametrize("law", SKETCH_LAWS)
    def test_mine(law): law(SketchCase(HeadParams(3, 2, 0.5, group=16, history=MyParams())))

A sketch is made by `make(params, state=None)` and has what HeadAttention has: `state` (plain arrays by name),
`calibrate`, `absorb`, `step`, `finish`, `answer`; its params have `state_spec()`, `work_spec()`, and dim, value_dim,
scale, dtype, stored, window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.testing.require import edges, require, require_close, require_close_mostly, require_same_bytes
from streamattn_cli.testing.streams import Stream, attention, make_stream, storable

CUTS = ((1,), (7,), (16,), (3, 1, 29), (1000,))  # sizes of blocks, in turn


@dataclass(frozen=True)
class SketchCase:
    """A sketch under test.

    The stream should be some groups long and end inside one; `spread` is that of its logits before the scale, and must
    be one that the method can answer. A method that learns from queries takes them by whole groups: its `step_rows` is
    the group, only the end of the stream may be shorter, and it is held to LEARNING_LAWS. `slack` is what rounding the
    state to few bits may change, relative to the largest output. A method `chooses` if what it keeps depends on how large
    values are beside weights: in one stream another choice may be better or worse by as much as its error.
    """

    params: HeadParams
    make: Callable[..., HeadAttention] = HeadAttention
    rows: int = 70
    spread: float = 1.0
    seed: int = 0
    step_rows: int = 1
    slack: float = 0.0
    chooses: bool = False

    def stream(self) -> Stream:
        """The made-up stream, of numbers that the sketch can store."""
        p = self.params
        made = make_stream(self.rows, p.dim, p.value_dim, p.dtype, spread=self.spread, seed=self.seed)
        return Stream(made.q, storable(made.k, p.stored), storable(made.c, p.stored))

    @property
    def tolerance(self) -> float:
        """What rounding may change, relative to the largest output."""
        return 2e-5 if self.params.dtype == "f4" else 1e-10


class Trial:
    """One sketch on its way through a stream, calibrated on that stream (or on `first`)."""

    def __init__(self, case: SketchCase, stream: Stream, first: Stream | None = None):
        self.case, self.stream = case, stream
        self.work = allocate(case.params.work_spec())
        self.sketch = case.make(case.params)
        first = first or stream
        self.sketch.calibrate(first.k, first.c, first.q.reshape(-1, case.params.dim))
        self.at = 0

    def absorb(self, count: int) -> None:
        """The next rows, without queries."""
        s, a, b = self.stream, self.at, self.at + count
        self.sketch.absorb(s.k[a:b], s.c[a:b], self.work)
        self.at = b

    def step(self, count: int) -> np.ndarray:
        """The next rows and the causal answers (heads, count, dv)."""
        s, a, b = self.stream, self.at, self.at + count
        out = np.full((len(s.q), count, self.case.params.value_dim), np.nan, s.k.dtype)
        self.sketch.step(s.q[:, a:b], s.k[a:b], s.c[a:b], out, self.work)
        self.at = b
        return out

    def answer(self, sizes: Iterable[int] = (1000,)) -> np.ndarray:
        """Answers (heads, n, dv) to all queries over the rows so far, so many queries at a time."""
        s = self.stream
        out = np.full((len(s.q), s.rows, self.case.params.value_dim), np.nan, s.k.dtype)
        for a, b in edges(s.rows, sizes):
            self.sketch.answer(s.q[:, a:b], a, out[:, a:b], self.work)
        return out

    def resume(self) -> None:
        """Go on with a new sketch made from copies of the state's arrays, and with new scratch."""
        state = {name: array.copy() for name, array in self.sketch.state.items()}
        self.sketch = self.case.make(self.case.params, state)
        self.work = allocate(self.case.params.work_spec())

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the state."""
        return {name: array.copy() for name, array in self.sketch.state.items()}


def causal(case: SketchCase, stream: Stream, sizes: Iterable[int] = (1000,)) -> tuple[np.ndarray, Trial]:
    """Causal answers (heads, n, dv) of a whole stream, and the trial at its end."""
    trial = Trial(case, stream)
    whole = [-(-size // case.step_rows) * case.step_rows for size in sizes]
    return np.concatenate([trial.step(b - a) for a, b in edges(stream.rows, whole)], axis=1), trial


def full(case: SketchCase, stream: Stream, sizes: Iterable[int] = (1000,)) -> tuple[np.ndarray, Trial]:
    """Full answers (heads, n, dv) of a whole stream, and the trial at its end."""
    trial = Trial(case, stream)
    for a, b in edges(stream.rows, sizes):
        trial.absorb(b - a)
    trial.sketch.finish(trial.work)
    return trial.answer(), trial


def require_same_state(found: dict, expected: dict, what: str) -> None:
    """Demand the same arrays, byte for byte."""
    require(sorted(found) == sorted(expected), f"{what}: arrays {sorted(found)} found, expected {sorted(expected)}")
    for name, array in expected.items():
        require_same_bytes(found[name], array, f"{what}: {name}")


def state_follows_from_params(case: SketchCase) -> None:
    """Shapes and dtypes of the state are those of state_spec, before and after rows; its bytes are those projected."""
    spec = case.params.state_spec()
    for trial in (Trial(case, case.stream()), causal(case, case.stream())[1], full(case, case.stream())[1]):
        found = {name: (array.shape, array.dtype) for name, array in trial.sketch.state.items()}
        expected = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in spec.items()}
        require(found == expected, f"state {found} found, expected {expected}")
        held = sum(array.nbytes for array in trial.sketch.state.values())
        require(held == spec_bytes(spec), f"state of {held} bytes found, {spec_bytes(spec)} projected")


def any_cut_gives_the_same_bytes(case: SketchCase) -> None:
    """Blocks of any size: the same state and the same answers, causal and full."""
    stream = case.stream()
    for way in (causal, full):
        expected, whole = way(case, stream)
        for sizes in CUTS:
            what = f"{way.__name__}, blocks of {sizes}"
            found, trial = way(case, stream, sizes)
            require_same_bytes(found, expected, what)
            require_same_state(trial.sketch.state, whole.sketch.state, what)


def absorb_and_step_make_the_same_state(case: SketchCase) -> None:
    """Rows are taken in alike whether their queries are answered or not."""
    stream = case.stream()
    stepped, absorbed = causal(case, stream, (5,))[1], Trial(case, stream)
    absorbed.absorb(stream.rows)
    require_same_state(stepped.sketch.state, absorbed.sketch.state, "after step and after absorb")


def resuming_changes_nothing(case: SketchCase) -> None:
    """Plain copies of the state, taken after any row, go on bit-identically in a new sketch."""
    stream = case.stream()
    for way, expected in (("causal", causal(case, stream)), ("full", full(case, stream))):
        for split in range(0, stream.rows + 1, case.step_rows if way == "causal" else 1):
            trial, what = Trial(case, stream), f"{way}, resumed at row {split}"
            parts = []
            for count in (split, stream.rows - split):
                parts.append(trial.step(count)) if way == "causal" else trial.absorb(count)
                trial.resume()
            if way == "full":
                trial.sketch.finish(trial.work)
                trial.resume()
                parts = [trial.answer()]
            require_same_bytes(np.concatenate(parts, axis=1), expected[0], what)
            require_same_state(trial.sketch.state, expected[1].sketch.state, what)


def adding_a_vector_to_all_keys_changes_nothing(case: SketchCase) -> None:
    """Softmax does not see a shift of its logits; only rounding does."""
    stream = case.stream()
    shift = np.linspace(-1.5, 2.5, case.params.dim)
    for way in (causal, full):
        found, _ = way(case, stream.with_keys(stream.k + shift))
        require_close(found, way(case, stream)[0], case.tolerance + case.slack, f"{way.__name__}, keys + {shift}")


def scaling_values_scales_outputs(case: SketchCase) -> None:
    """Outputs are linear in the values, negative factors included; where a method `chooses`, in the median of nine streams."""
    cases = [replace(case, seed=case.seed + i) for i in range(9 if case.chooses else 1)]
    for way in (causal, full):
        for factor in (-3.7, 1e-3, 0.0):
            pairs = []
            for one in cases:
                stream = one.stream()
                found, _ = way(one, stream.with_values(stream.v * stream.k.dtype.type(factor)))
                pairs.append((found, factor * way(one, stream)[0]))
            require_close_mostly(pairs, case.tolerance + case.slack, f"{way.__name__}, values * {factor}")


def rows_of_weight_zero_count_for_nothing(case: SketchCase) -> None:
    """What the key of a row of weight 0 is has no effect, however large its logits; a window of them answers like a
    window without."""
    p, stream = case.params, case.stream()
    dead = np.zeros(stream.rows, bool)
    dead[2::7] = dead[3::11] = True
    stream.c[dead] = 0
    quiet, loud = stream.k.copy(), stream.k.copy()
    quiet[dead], loud[dead] = 0, stream.k[dead] * 1e3 / (p.scale * case.spread)
    first = Stream(stream.q, stream.k[~dead], stream.c[~dead])  # what a caller would calibrate on
    for way in ("causal", "full"):
        outputs = []
        for keys in (quiet, loud):
            trial = Trial(case, stream.with_keys(keys), first)
            if way == "causal":
                outputs.append(trial.step(stream.rows))
            else:
                trial.absorb(stream.rows)
                trial.sketch.finish(trial.work)
                outputs.append(trial.answer())
        require_close(outputs[1], outputs[0], case.tolerance, f"{way}, loud rows of weight 0")
    short = stream.with_keys(loud).head(max(1, min(p.window, stream.rows)))
    found = Trial(case, short, first).step(short.rows)
    exact = attention(short, p.scale, causal=True)
    require_close(found, exact, case.tolerance, f"causal, {short.rows} rows, loud ones of weight 0")


def a_stream_within_the_window_is_exact(case: SketchCase) -> None:
    """Up to `window` rows (one at least), causal and full answers are exact attention."""
    first = case.stream()
    for rows in sorted({1, max(1, case.params.window // 2), max(1, case.params.window)}):
        stream = replace(case, rows=rows, spread=5 * case.spread).stream()
        exact = attention(stream, case.params.scale, causal=True)
        require_close(Trial(case, stream, first).step(rows), exact, case.tolerance, f"causal, {rows} rows")
        if rows <= case.params.window:
            trial = Trial(case, stream, first)
            trial.absorb(rows)
            trial.sketch.finish(trial.work)
            exact = attention(stream, case.params.scale, causal=False)
            require_close(trial.answer(), exact, case.tolerance, f"full, {rows} rows")


def outputs_lie_in_the_range_of_the_values(case: SketchCase) -> None:
    """Every output is finite and, per channel, between the least and the largest value seen."""
    stream = case.stream()
    slack = case.tolerance * np.abs(stream.v).max()
    low, high = np.minimum.accumulate(stream.v) - slack, np.maximum.accumulate(stream.v) + slack
    for way, a, b in ((causal, low, high), (full, low[-1], high[-1])):
        what, out = way.__name__, way(case, stream)[0]
        require(bool(np.isfinite(out).all()), f"{what}: outputs that are not finite")
        require(bool(((out >= a) & (out <= b)).all()), f"{what}: outputs outside the range of the values")


def answering_changes_nothing(case: SketchCase) -> None:
    """`answer` leaves the state as it was, and gives the same bytes again."""
    trial = full(case, case.stream())[1]
    before, first = trial.state(), trial.answer()
    require_same_state(trial.sketch.state, before, "after answering")
    require_same_bytes(trial.answer(), first, "the second answer")


def queries_in_any_cut_get_the_same_bytes(case: SketchCase) -> None:
    """Queries are answered one by one, by sevens or all at once, over a finished stream and over one under way."""
    stream = case.stream()
    running = Trial(case, stream)
    running.absorb(stream.rows)
    for what, trial in (("finished", full(case, stream)[1]), ("under way", running)):
        expected = trial.answer()
        for sizes in CUTS:
            require_same_bytes(trial.answer(sizes), expected, f"{what}, queries by {sizes}")


def heads_do_not_see_each_other(case: SketchCase) -> None:
    """A query head alone gets the same answers as in its group: the same bytes, but for rounding where heads share a tile,
    because products of other shapes may sum in another order (OpenBLAS does with AVX-512)."""
    stream = case.stream()
    together = causal(case, stream)[0]
    for head in range(len(stream.q)):
        alone = Trial(case, Stream(stream.q[head : head + 1], stream.k, stream.c), first=stream)
        found, what = alone.step(stream.rows)[0], f"head {head} alone"
        if case.params.stack == 1:
            require_same_bytes(found, together[head], what)
        else:
            require_close(found, together[head], 64 * np.finfo(found.dtype).eps, what)


def scratch_carries_nothing(case: SketchCase) -> None:
    """Scratch arrays are shared with other heads: what they hold between calls has no effect, and tallies only grow."""
    stream = case.stream()
    expected, _ = causal(case, stream)
    trial, parts = Trial(case, stream), []
    for a, b in edges(stream.rows, (max(11, case.step_rows),)):
        for name, array in trial.work.items():
            if name != "counts" and isinstance(array, np.ndarray):  # the others are views
                array.fill(np.nan if array.dtype.kind == "f" else -1)
        parts.append(trial.step(b - a))
    require_same_bytes(np.concatenate(parts, axis=1), expected, "with spoilt scratch")


SKETCH_LAWS = (
    state_follows_from_params,
    any_cut_gives_the_same_bytes,
    absorb_and_step_make_the_same_state,
    resuming_changes_nothing,
    adding_a_vector_to_all_keys_changes_nothing,
    scaling_values_scales_outputs,
    rows_of_weight_zero_count_for_nothing,
    a_stream_within_the_window_is_exact,
    outputs_lie_in_the_range_of_the_values,
    answering_changes_nothing,
    queries_in_any_cut_get_the_same_bytes,
    heads_do_not_see_each_other,
    scratch_carries_nothing,
)

# what one head's queries teach a method changes its answers to another's, and rows without queries teach nothing
LEARNING_LAWS = tuple(
    law for law in SKETCH_LAWS if law not in (absorb_and_step_make_the_same_state, heads_do_not_see_each_other)
)
