"""`warm`: compile the kernels of all methods, so that no later run has to."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from streamattn_cli.engine.passes.warm import COMPILING, warm
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.engine.watch.events import Listener, Note
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import OutputFailed
from streamattn_cli.kernels import jit
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.histories.nystromparams import SHORT

HELD = {found.holder: name for name, found in reversed(DTYPES.items())}  # those held alike have the same kernels
ROWS, DIM = 2048, 8


def warm_all(listener: Listener, interrupts: Interrupts) -> dict:
    """Compile what the cache lacks; `methods`, and the number of `kernels` compiled. Raises OutputFailed where none is kept."""
    with jit.compilation(lambda: listener(Note(COMPILING))) as count:
        for dtype, request in _requests():
            interrupts.check()
            with interrupts.at_once():
                warm(make_plan(resolve(request, _inputs(dtype))), lambda event: None)
            if count.unkept:
                raise OutputFailed(count.told)
    return {"methods": [method.name for method in registry.usable()], "kernels": count.kernels}


def _requests() -> list[tuple[str, RunRequest]]:
    """Every method, dtype and mode, and the settings that have kernels of their own."""
    found = []
    for dtype, method, causal in product(HELD.values(), (m.name for m in registry.usable()), (True, False)):
        plain = RunRequest(method=method, causal=causal, resident_rows=256, audit=8, degree=2, max_error=float("inf"))
        if method == "exact" or method == "poly":
            plain = replace(plain, resident_rows=None)
        found.append((dtype, plain))
        if method in ("window", "exact") and causal:
            found.append((dtype, replace(plain, softcap="1")))  # and all else that bends logits
        if method == "nystrom":  # short streams have atoms of other bits
            kinds = [plain, replace(plain, rope="10000:half")] if causal else [plain]
            found += [(dtype, replace(kind, resident_rows=rows)) for kind in kinds for rows in (256, ROWS // SHORT + 1)]
        if method == "poly" and not causal and dtype != "f8":
            for sketches in ("psi", "phi", "paper"):
                found.append((dtype, replace(plain, sketches=sketches, top_k=None if sketches == "psi" else 4)))
    return found


def _inputs(dtype: str) -> Inputs:
    rows = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype("f4") * np.float32(0.1)
    q, k, v = (Heads(MemoryTensor.of(rows, dtype), (0,), (0,), DIM) for _ in "qkv")
    return Inputs(q, k, v)
