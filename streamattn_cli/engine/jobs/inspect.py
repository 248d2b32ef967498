"""What is in an input: arrays, layouts, finite or not, how far the logits spread, and which method that suits.

Works in NumPy alone: no kernels are compiled or loaded for it.
"""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.jobs.pasted import bent, command, one_layer
from streamattn_cli.engine.passes.pump import Teller, Watch, pump
from streamattn_cli.engine.planning.adviser import logit_spread, predicted_poly_error, sample_rows
from streamattn_cli.engine.planning.choose import choose
from streamattn_cli.engine.planning.resolve import head_of
from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.engine.request.scale import scale_value
from streamattn_cli.engine.watch.events import Listener, Note
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.arrays import single
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.inputs.paths import Place, find
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.readahead import Block, ReadAhead, distinct
from streamattn_cli.rows.tensors.tensor import RowTensor, row_bytes
from streamattn_cli.sketches.histories.monomials import feature_count

BLOCK_BYTES = 4 << 20
PIECE = 1 << 18  # items of a block that are looked at together
DEGREES = (2, 4, 6, 8)


def inspect(spec: InputSpec, scale: str | None, listener: Listener, interrupts: Interrupts) -> dict:
    """Look at an input: a JSON-able report with `arrays`, `tensors`, `logits`, `methods`, `advice` and `notes`.

    Every row of q, k and v is read once, to see whether all values are finite. Raises the errors of opening.
    """
    report: dict = {"type": "inspection", "arrays": [], "tensors": [], "notes": []}
    with interrupts.at_once():
        typed = spec
        spec, layered = one_layer(spec, report["notes"])
        report["arrays"] = _arrays(spec)
        inputs = _open(spec, report["notes"])
    if inputs is None:
        return report
    with inputs:
        report["notes"] += inputs.notes
        report["attributes"] = inputs.attrs
        if spec.input != "-":
            report["command"] = command(typed if spec.number is not None else spec, inputs, layered)
        parts = inputs.heads
        files = file_states(heads.tensor for heads in parts.values())
        with interrupts.at_once():
            sample = sample_rows(inputs)
        watch = Watch(listener, interrupts)
        scans = {id(t): _scan(t, watch) for t in distinct(h.tensor for h in parts.values())}
        for name, heads in parts.items():
            report["tensors"].append(_describe(name, heads, *scans[id(heads.tensor)]))
        if sample is not None:
            factor = scale_value(str(scale or inputs.attrs.get("scale", "sqrt")), parts["k"].dim)
            report["logits"] = logit_spread(*sample, factor, bool(inputs.attrs.get("causal", False)))
            report |= _methods(spec, report["logits"], inputs, max(rows for rows, _ in scans.values()))
        check_unchanged(files)
    for text in report["notes"]:
        listener(Note(text))
    return report


def _arrays(spec: InputSpec) -> list[dict]:
    """Every array of the files named, from headers alone."""
    found: list[dict] = []
    for word in dict.fromkeys(w for w in (spec.input, spec.q, spec.k, spec.v) if w is not None and w != "-"):
        place = find(word, raw=spec.raw is not None)
        if place.kind in ("pipe", "raw"):
            continue
        for inside in [place.inside] if place.inside else place.held.names(place.path):
            try:
                stored = single(Place(place.path, inside or None, place.kind), word, None, spec.dtype)
            except InputMalformed as error:
                integers = place.held.integers
                whole = integers(place.path, inside, PIECE) if integers and inside else None
                told = str(error) if whole is None else f"{whole.dtype} of shape {whole.shape}: no rows"
                found.append({"name": f"{place.path}:{inside}", "error": told})
            else:
                found.append({"name": stored.name, "shape": list(stored.shape), "dtype": stored.dtype})
    return found


def _open(spec: InputSpec, notes: list[str]) -> Inputs | None:
    """q, k, v of the input, or k and v, or nothing where one array stands alone."""
    words = [w for w in (spec.input, spec.q, spec.k, spec.v) if w is not None]
    alone = len(words) == 1 and spec.record is None and spec.raw is None and words[0] != "-"
    if alone and (format_ := find(words[0]).format) and format_.unnamed and not _says_what(words[0], spec):
        notes.append(
            f"{words[0]}: one array; say what it holds with --record qkv or kv, or name all with --q, --k, --v"
        )
        return None
    try:
        return open_inputs(spec)
    except (UsageError, InputMissing) as error:
        try:
            inputs = open_inputs(spec, need_q=False)
        except (UsageError, InputMissing):
            raise error from None
        notes.append(f"no queries: {error}")
        return inputs


def _says_what(word: str, spec: InputSpec) -> bool:
    """Whether the rows of a file say what they hold."""
    try:
        return bool(single(find(word), word, None, spec.dtype).parts)
    except InputMalformed:
        return False


def _scan(tensor: RowTensor, watch: Watch) -> tuple[int, int]:
    """(rows, items that are not finite) of a whole tensor."""
    lost = 0

    def take(block: Block) -> None:
        nonlocal lost
        flat = block.arrays[0].reshape(-1)
        for a in range(0, flat.size, PIECE):
            lost += _not_finite(flat[a : a + PIECE], tensor.dtype)

    block_rows = max(1, BLOCK_BYTES // row_bytes(tensor))
    blocks = ReadAhead([tensor], 0, tensor.rows, block_rows, check=watch.interrupts.check)
    return pump(blocks, take, watch, Teller(watch, blocks, Phase.SCAN, tensor.rows)), lost


def _not_finite(items: np.ndarray, dtype: str) -> int:
    """How many have a bit pattern that no number has: infinities and NaN."""
    bits, signed = (items.view(f"{kind}{items.itemsize}") for kind in "ui")
    limit = DTYPES[dtype].limit
    sign = 1 << (8 * items.itemsize - 1)
    # two maxima take half the time of a count: that of the numbers with a sign, and that of those without
    if int(bits.max(initial=0)) < limit | sign and int(signed.max(initial=0)) < limit:
        return 0
    return int(np.count_nonzero((bits & bits.dtype.type(sign - 1)) >= limit))


def _describe(name: str, heads: Heads, rows: int, lost: int) -> dict:
    return {
        "part": name,
        "name": heads.tensor.name,
        "rows": rows,
        "heads": len(heads),
        "dim": heads.dim,
        "dtype": heads.tensor.dtype,
        "layout": heads.layout,
        "not_finite": lost,
    }


def _methods(spec: InputSpec, logits: dict, inputs: Inputs, rows: int) -> dict:
    """What `poly` would do here at several degrees, and the method that --method auto takes."""
    q, k, v = inputs.parts
    table: list[dict] = []
    data = rows * len(k) * (k.dim + v.dim) * DTYPES[k.tensor.dtype].itemsize
    for degree in DEGREES:
        size = len(k) * feature_count(k.dim, degree) * (v.dim + 1) * 8
        if size <= data:  # a larger one would be no sketch
            error = predicted_poly_error(degree, logits["row_std_rms"])
            table.append({"method": "poly", "degree": degree, "state_bytes": size, "predicted_error": error})
    request, seekable = RunRequest(inputs=spec, method="auto"), all(h.tensor.seekable for h in (q, k, v))
    found = choose(request, head_of(q, k, v, logits["scale"]), rows, seekable, logits, bent(inputs))
    more = f" --degree {found.degree}" if found.degree else ""
    return {"methods": table, "advice": f"--method {found.method}{more}: {found.reason}"}
