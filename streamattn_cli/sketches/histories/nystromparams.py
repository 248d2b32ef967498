"""How `nystrom` lays out a budget: how many atoms of how many bits, and how much work goes into them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches.budget import DEFAULT_ROWS, check_buffer, group_rows, with_sinks
from streamattn_cli.sketches.headparams import HeadParams, spec_bytes
from streamattn_cli.sketches.method import MethodOptions

LARGE = 512  # resident rows from which on long causal streams have groups of 64 and the larger window
WINDOW_SHARES = 0.15, 0.3  # of the rows, exact recent ones
RECENT_BITS = 12  # of a number of a recent row, where atoms have six
SHORT = 6  # rows of a stream per resident row up to which eight bits serve better than six: there an atom is few rows
MODEL_SHARE = 0.05  # of the budget: where correlations of the queries in 16 bits would take more, they get 8 (N26)
TEMPER = 0.8  # of a model of the queries that was learnt on the way
ACTIVE = {"fast": 64, "default": 160, "best": 512}  # atoms that take part in one compression
TURNS = {"fast": 1, "default": 2, "best": 4}  # positions of the future that one compression looks at
MANY = 600  # atoms; with fewer, more than two positions ask more of them than they can give
FEW = 800  # atoms; with fewer, answers leave time for a third position


@dataclass(frozen=True)
class NystromParams:
    """Settings of `nystrom`: how many atoms are kept, and how many of them take part in one compression."""

    atoms: int
    active: int = 192
    bits: int = 8  # 6, of keys and coefficients; before there was that: 8 or 16 of a coefficient, beside keys of 8
    temper: float = 0.8  # see compress; 1 where the queries are known beforehand
    storage: str = "f4"  # dtype of the exact rows that the bank holds at first
    rope: str = ""  # rotary positions of queries and keys (rope.rope_word), where they are known
    turns: int = 0  # with these, how many positions of the future one compression fits its atoms to
    model_bits: int = 16  # of a correlation of the queries
    recent_bits: int = 0  # 12, of a number of a recent row, once the bank is compressed; 0: as stored

    @property
    def forget(self) -> float:
        """Rows after which a query counts 1/e: the fewer atoms, the sooner, since they can serve few queries well."""
        least, most, share = (128, 512, 2.0) if self.rope else (32, 256, 0.25)
        return float(min(max(share * self.atoms, least), most))

    def to_dict(self) -> dict:
        """JSON-able form; what earlier versions did not know only where it is used."""
        plain = {"rope": "", "turns": 0, "model_bits": 16, "recent_bits": 0}
        return {name: value for name, value in asdict(self).items() if name not in plain or value != plain[name]}


def atom_bytes(dim: int, value_dim: int, bits: int) -> int:
    """Bytes of one atom: key, coefficients, a bfloat16 scale for each, float32 weight."""
    return sum(coded_bytes(dim, value_dim, bits)) + 2 * 2 + 4


def coded_bytes(dim: int, value_dim: int, bits: int) -> tuple[int, int]:
    """Bytes of the key and of the coefficients of an atom."""
    return (3 * -(-dim // 4), 3 * -(-value_dim // 4)) if bits == 6 else (dim, value_dim * bits // 8)


def nystrom_params(
    params: HeadParams, rows: int, effort: str, window: int | None = None, buffer: int | None = None,
    atoms: int | None = None, *, causal: bool = True, stream: int | None = None, rope: str = "",
) -> HeadParams:  # fmt: skip
    """The `nystrom` method within `rows` rows: sinks, window and buffer exact, atoms and statistics in the rest.

    `stream` is the number of rows that will come, None if nobody knows (see SHORT). With `fast` a causal stream gets a larger
    buffer, small slices and eight bits, which need not be taken apart: fewer atoms, which is what takes its time. `best`
    compresses at most half of the atoms at once, or as many as the default: a slice of all of them was up to 7% worse.
    """
    rope, fast = rope if causal else "", causal and effort == "fast"
    short = stream is not None and stream <= SHORT * rows
    large = causal and rows >= LARGE and not short
    active = min(8 * (4 + rows // 128), ACTIVE["default"]) if fast else ACTIVE[effort]
    group = buffer or (group_rows(rows, 8, 64) if fast or large else group_rows(rows))
    check_buffer(group)
    if window is None:
        window = 1 + max(1, round(WINDOW_SHARES[large] * rows / group)) * group if causal else 1
    bits = 8 if fast or short else 6
    model_bits = 8 if params.dim * (params.dim - 1) > MODEL_SHARE * rows * params.row_bytes else 16
    history = NystromParams(0, active, bits, TEMPER if causal else 1.0, params.stored, rope, model_bits=model_bits)
    params = replace(params, group=group, window=max(window, 1), history=history)
    if causal and bits == 6 and params.window > 1:
        coded = replace(history, recent_bits=RECENT_BITS)
        saves = replace(params, history=coded).coded_bytes < params.row_bytes
        history = coded if saves else history
        params = replace(params, history=history)
    size = atom_bytes(params.dim, params.value_dim, history.bits)
    if atoms is None:
        atoms = (rows * params.row_bytes - spec_bytes(params.state_spec())) // size
    few = max(
        2 * group, -(-group * params.row_bytes // size)
    )  # the first group is held as rows, which show what is usual
    if atoms < few:
        least = spec_bytes(params.state_spec()) + few * size
        raise UsageError(
            f"{max(atoms, 0)} atoms are left of --resident-rows {rows} beside {params.sinks} sinks, a window of "
            f"{params.window}, a buffer of {group} and the query statistics; give --resident-rows "
            f"{-(-least // params.row_bytes)} or more, or a smaller --window or --buffer"
        )
    turns = min(TURNS[effort], 2 if atoms < MANY else 4) if rope else 0
    turns += bool(rope) and effort == "default" and MANY <= atoms < FEW
    active = min(active, max(ACTIVE["default"], atoms // 2), atoms)
    return replace(params, history=replace(history, atoms=int(atoms), active=int(active), turns=turns))


def settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
    """The `settings` of the method (see method.py): a budget laid out by `nystrom_params`."""
    rows, by_hand = options.resident_rows or DEFAULT_ROWS, (options.window, options.buffer, options.atoms)
    params, rope = with_sinks(head, options), options.rope or ""
    return nystrom_params(params, rows, options.effort, *by_hand, causal=causal, stream=stream, rope=rope)
