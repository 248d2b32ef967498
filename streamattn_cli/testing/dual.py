"""What exact attention for held queries promises (ExactQueries, or whatever shares its face)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.testing.require import edges, require, require_close, require_same_bytes
from streamattn_cli.testing.streams import Stream, attention, make_stream

CUTS = ((1,), (7,), (512,), (511, 2), (100, 1000))


@dataclass(frozen=True)
class DualCase:
    """Held queries under test, of a stream longer than one tile of keys and one of queries."""

    dtype: str = "f4"
    causal: bool = True
    dim: int = 3
    value_dim: int = 2
    scale: float = 0.5
    rows: int = 1100
    make: Callable[..., ExactQueries] = ExactQueries
    seed: int = 0

    def stream(self) -> Stream:
        """The made-up stream."""
        return make_stream(self.rows, self.dim, self.value_dim, self.dtype, spread=4.0, seed=self.seed)

    @property
    def positions(self) -> np.ndarray:
        """Rows of the held queries: some in the first tile, some of the last rows, out of step with the tiles."""
        return np.arange(5, self.rows, 3)

    @property
    def tolerance(self) -> float:
        """What rounding may change, relative to the largest output."""
        return 1e-5 if self.dtype == "f4" else 1e-12


def answers(case: DualCase, stream: Stream, sizes: Iterable[int] = (1000,)) -> tuple[np.ndarray, ExactQueries]:
    """Answers (heads, n, dv) to the held queries, and their holder at the end."""
    at = case.positions
    held = case.make(stream.q[:, at], at if case.causal else None, case.value_dim, case.scale)
    work = allocate(held.work_spec(case.value_dim))
    for a, b in edges(stream.rows, sizes):
        held.absorb(stream.k[a:b], stream.c[a:b], work)
    held.finish(work)
    out = np.full((len(stream.q), len(at), case.value_dim), np.nan, case.dtype)
    held.outputs(out)
    return out, held


def true(case: DualCase, stream: Stream) -> np.ndarray:
    """What the answers should be, in float64."""
    return attention(stream, case.scale, case.causal)[:, case.positions]


def answers_are_exact_attention(case: DualCase) -> None:
    """Equal to attention in float64, to rounding."""
    stream = case.stream()
    require_close(answers(case, stream)[0], true(case, stream), case.tolerance, "held queries")


def any_cut_of_the_keys_gives_the_same_bytes(case: DualCase) -> None:
    """Blocks of any size: the same m, y and outputs."""
    stream = case.stream()
    expected, whole = answers(case, stream)
    for sizes in CUTS:
        found, held = answers(case, stream, sizes)
        require_same_bytes(found, expected, f"blocks of {sizes}")
        require_same_bytes(held.m, whole.m, f"m, blocks of {sizes}")
        require_same_bytes(held.y, whole.y, f"y, blocks of {sizes}")


def held_bytes_are_those_projected(case: DualCase) -> None:
    """The arrays of the object have exactly the projected bytes."""
    stream = case.stream()
    _, held = answers(case, stream)
    arrays = (held.q, held.m, held.y, held.tiles.k, held.tiles.c)
    heads, n, dim = stream.q[:, case.positions].shape
    projected = held.projected_bytes(heads, n, dim, case.value_dim, case.dtype)
    found = sum(array.nbytes for array in arrays)
    require(found == projected, f"{found} bytes held, {projected} projected")


def adding_a_vector_to_all_keys_changes_nothing(case: DualCase) -> None:
    """Softmax does not see a shift of its logits."""
    stream = case.stream()
    moved = stream.with_keys(stream.k + np.linspace(-1.5, 2.5, case.dim))
    require_close(answers(case, moved)[0], answers(case, stream)[0], case.tolerance, "shifted keys")


def scaling_values_scales_outputs(case: DualCase) -> None:
    """Outputs are linear in the values."""
    stream = case.stream()
    found = answers(case, stream.with_values(stream.v * stream.k.dtype.type(-3.7)))[0]
    require_close(found, -3.7 * answers(case, stream)[0], case.tolerance, "values * -3.7")


def rows_of_weight_zero_count_for_nothing(case: DualCase) -> None:
    """Their keys have no effect, however large."""
    stream = case.stream()
    dead = np.zeros(stream.rows, bool)
    dead[1::4] = True
    stream.c[dead] = 0
    stream.k[dead] *= 1e3
    require_close(answers(case, stream)[0], true(case, stream), case.tolerance, "rows of weight 0")


def rows_after_a_query_are_not_seen(case: DualCase) -> None:
    """Causal: other keys and values behind a query's row leave its bytes alone."""
    if not case.causal:
        return
    stream = case.stream()
    changed = replace(stream, k=stream.k.copy(), c=stream.c.copy())
    middle = stream.rows // 2
    changed.k[middle:] *= 3
    changed.c[middle:, :-1] += 100
    before = case.positions < middle
    found, expected = answers(case, changed)[0][:, before], answers(case, stream)[0][:, before]
    require_same_bytes(found, expected, "rows before the change")


DUAL_LAWS = (
    answers_are_exact_attention,
    any_cut_of_the_keys_gives_the_same_bytes,
    held_bytes_are_those_projected,
    adding_a_vector_to_all_keys_changes_nothing,
    scaling_values_scales_outputs,
    rows_of_weight_zero_count_for_nothing,
    rows_after_a_query_are_not_seen,
)
