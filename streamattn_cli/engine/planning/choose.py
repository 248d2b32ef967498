"""`--method auto`: which method an input calls for, by rules that give the same answer every time.

exact     up to SHORT rows, where no budget of resident rows was given: nothing else is right without a doubt; and where logits
          are bent (sketches/bend.py), or window on a pipe
poly      where a degree that fits the budget of the other methods has a predicted error of at most GOOD_ERROR
nystrom   everything else: on the real heads of scripts/choices.py nothing else of the same size came near it
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamattn_cli.engine.planning.adviser import SHORT, logit_spread, predicted_poly_error, sample_rows
from streamattn_cli.engine.planning.parameters import poly_bytes
from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.tensor import RowTensor
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.poly import MAX_DEGREE

GOOD_ERROR = 0.05  # predicted, of poly; nystrom of the same size errs by about as much where poly just reaches this
FINEST_ERROR = 1e-6  # and one that needs no larger degree: float32 cannot show less
DEGREES = range(1, MAX_DEGREE + 1)


@dataclass(frozen=True)
class Choice:
    """A method, the degree of poly, and why."""

    method: str
    reason: str
    degree: int | None = None


def spread_of(inputs: Inputs, scale: float, causal: bool, first_query: int = 0) -> dict | None:
    """The spread of the logits in a sample (see inspect.py), query 0 beside key `first_query`; None where rows cannot be read."""
    if any(h is None or _unreadable(h.tensor) for h in (inputs.q, inputs.k)):
        return None
    found = sample_rows(inputs)
    if not found:
        return None
    q, k, q_rows, k_rows = found
    return logit_spread(q, k, first_query + q_rows, k_rows, scale, causal)


def _unreadable(tensor: RowTensor) -> bool:
    """Whether there is nothing behind it: no rows, or numbers alone (rows/tensors/placeholder.py)."""
    return tensor.width == 0 or tensor.rows == 0 or (tensor.path is None and tensor.seekable)


def choose(
    request: RunRequest, head: HeadParams, rows: int | None, seekable: bool, spread: dict | None, bent: bool = False
) -> Choice:
    """The method for key heads like `head` over `rows` rows (None: unknown) and logits of that spread, bent or not."""
    if bent:
        return Choice("exact" if seekable else "window", "no compressed rows answer where logits are capped or biased")
    if seekable and rows is not None and rows <= SHORT and request.resident_rows is None:
        return Choice("exact", f"{rows} rows are few enough to be answered exactly")
    budget = request.budget * head.row_bytes
    if spread is None or not spread["row_std"]:
        return Choice("nystrom", "the logits are not known beforehand, and nystrom suits them however far they spread")
    std = spread["row_std_rms"]
    degree = poly_degree(request, head, budget, std)
    told = f"the logits of a row have a standard deviation of {std:.2g} (root mean square over rows)"
    error = predicted_poly_error(degree, std) if degree else 1.0
    if error <= GOOD_ERROR:
        return Choice("poly", f"{told}: a polynomial of degree {degree} errs by about {error:.2g}", degree)
    return Choice("nystrom", f"{told}, too far apart for a polynomial of the same size")


def poly_degree(request: RunRequest, head: HeadParams, budget: int, std: float) -> int | None:
    """The degree that is worth its memory: the largest within `budget` bytes, but no larger than FINEST_ERROR needs."""
    found = None
    for degree in DEGREES:
        if poly_bytes(request, head, degree) > budget:
            break
        found = degree
        if predicted_poly_error(degree, std) <= FINEST_ERROR:
            break
    return found


def decided(
    request: RunRequest, inputs: Inputs, head: HeadParams, causal: bool, first_query: int, bent: bool
) -> tuple[RunRequest, str]:
    """A request of `--method auto` with its method, and a note that says why."""
    parts = inputs.parts
    seekable = all(h.tensor.seekable for h in parts)
    spread = spread_of(inputs, head.scale, causal, first_query)
    found = choose(request, head, parts[1].rows, seekable, spread, bent)
    settings = f" --degree {found.degree}" if found.degree else ""
    request = replace(request, method=found.method, degree=found.degree or request.degree)
    return request, f"--method auto takes {found.method}{settings}: {found.reason}"
