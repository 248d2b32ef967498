"""What Python programs give: arrays, tensors of PyTorch, words of the command, and settings by name."""

from __future__ import annotations

import os
from dataclasses import replace
from operator import index
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np

from streamattn_cli.engine.request.requests import CompareRequest, RunRequest
from streamattn_cli.engine.request.scale import scale_value
from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.options import options_of
from streamattn_cli.rows.inputs.checks import check_heads, check_rows
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads, whole
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.tensors.resumed import ContinuedTensor

SETTINGS = (
    "method", "scale", "resident_rows", "effort", "bits", "score", "sinks", "window", "buffer", "atoms", "degree", "polynomial",
    "beta", "max_error", "memory", "seed", "threads", "block_rows", "nan_policy", "first_query", "local", "sink_logit",
    "softcap", "logit_bias",
)  # fmt: skip
TYPED = "first_query", "local", "sink_logit", "softcap", "logit_bias"  # numbers that the command takes as words
DTYPES = ("<f2", "<f4", "<f8", "<u2", "|V2", "<V2")
R = TypeVar("R", RunRequest, CompareRequest)


class WrongSetting(UsageError, ValueError):
    """A setting that there is not, or a value that it cannot have."""


class WrongDtype(InputMalformed, TypeError):
    """An array of numbers that are not taken for floats."""


def inputs_of(q: object, k: object, v: object) -> Inputs:
    """The inputs of three arrays, of three words, or of one word."""
    words = [word for word in (q, k, v) if isinstance(word, (str, os.PathLike))]
    if not words:
        heads = {name: heads_of_array(array, name) for name, array in (("q", q), ("k", k), ("v", v))}
        check_heads(InputSpec(), heads)
        check_rows(heads)
        return Inputs(heads["q"], heads["k"], heads["v"])
    given = [os.fspath(word) for word in words]
    if len(given) == 3:
        return open_inputs(InputSpec(q=given[0], k=given[1], v=given[2]))
    if len(given) > 1 or k is not None or v is not None:
        raise WrongSetting(
            "q, k, v: some arrays and some names of files found; give three arrays, three names, or one file"
        )
    return open_inputs(InputSpec(given[0]))


def like(q: Any, out: np.ndarray) -> np.ndarray:
    """Answers without an axis of heads to queries without one."""
    return out[:, 0] if not isinstance(q, (str, os.PathLike)) and np.ndim(q) == 2 else out


def array_of(given: object) -> np.ndarray:
    """An array, or a tensor of PyTorch on any device as one; of bfloat16 its bit patterns, uint16."""
    if not hasattr(given, "detach"):
        return np.asarray(given)
    tensor = given.detach().cpu()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.numpy())
    return (np.asarray(tensor.float().numpy()).view("<u4") >> 16).astype("<u2")


def heads_of_array(given: object, name: str, start: int | None = None) -> Heads:
    """Heads over an array (n, heads, dim) or (n, dim); from global row `start` on, as of a pipe, if that is given."""
    array = array_of(given)
    check_dtype(array, name)
    if array.ndim not in (2, 3):
        batch = "; of (batch, heads, rows, dim) give one sequence, array[0].swapaxes(0, 1)" if array.ndim == 4 else ""
        raise InputMalformed(f"{name}: shape {array.shape} found, expected (rows, heads, dim) or (rows, dim){batch}")
    tensor = MemoryTensor(array, "THD" if array.ndim == 3 else "TD", name)
    heads = whole(tensor, tensor.extent)
    return heads if start is None else replace(heads, tensor=ContinuedTensor(tensor, start))


def check_dtype(array: np.ndarray, name: str) -> None:
    """Raise WrongDtype for arrays of what no row is stored in."""
    if array.dtype.str not in DTYPES:
        raise WrongDtype(
            f"{name}: dtype {array.dtype} found, expected float16, float32 or float64 (uint16: bfloat16 bit patterns); "
            "convert it with array.astype('float32')"
        )


def run_of(settings: dict[str, object], **asked: object) -> RunRequest:
    """The run with these settings; `asked`: causal, audit and rope. Raises WrongSetting."""
    return request_of(RunRequest, settings, **asked)


def request_of(kind: type[R], settings: dict[str, object], **asked: object) -> R:
    """The same of any request: a setting is one of its fields, too."""
    hints = get_type_hints(kind)
    known = [name for name in SETTINGS if name in hints]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise WrongSetting(f"unknown setting {', '.join(unknown)}; there are {', '.join(known)}")
    if settings.get("scale") is not None:
        settings = {**settings, "scale": str(settings["scale"])}
    typed = {name: _word(settings[name]) for name in TYPED if settings.get(name) is not None}
    settings = {**settings, **typed}
    reads = {name: described.read for name, _, described in options_of(kind)}
    try:
        read: dict[str, Any] = {}
        for name, value in settings.items():
            of_word = reads[name]
            read[name] = of_word(value) if of_word and isinstance(value, str) else _typed(name, value, hints[name])
        if read.get("scale") is not None:
            scale_value(read["scale"], dim=1)
        read |= {name: _typed(name, value, hints[name]) for name, value in asked.items()}
        return kind(InputSpec(), **read)
    except UsageError as error:
        raise WrongSetting(str(error)) from None


def _word(value: object) -> str:
    """A number, or several, as the command takes them."""
    return value if isinstance(value, str) else ",".join(map(str, np.atleast_1d(array_of(value)).tolist()))


def _typed(name: str, value: Any, hint: type) -> object:
    """The value as one of the types of a hint such as `int | None`; UsageError where it is none of them."""
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is bool and isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        if kind is str and isinstance(value, str):
            return value
        if kind not in (str, bool) and not isinstance(value, (str, bool, np.bool_)):
            return index(value) if kind is int else kind(value)
    except (TypeError, ValueError):
        pass
    words = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}[kind]
    raise UsageError(f"{name}={value!r} found, expected {words}" + (" or None" if type(None) in kinds else ""))
