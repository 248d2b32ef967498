"""Storage dtypes of HDF5 types, told by their bit fields: bfloat16 has no NumPy type, only a custom HDF5 float."""

from __future__ import annotations

import h5py

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensor import storage_of

# (bytes, exponent position, exponent bits, mantissa bits, exponent bias)
_FLOATS = {(2, 10, 5, 10, 15): "f2", (2, 7, 8, 7, 127): "bf16", (4, 23, 8, 23, 127): "f4", (8, 52, 11, 52, 1023): "f8"}


def file_storage(found: h5py.h5t.TypeID, name: str, wanted: str | None) -> tuple[str, bool, str | None]:
    """(storage dtype, whether the bytes in the file are it as they are, note). Raises InputMalformed."""
    if isinstance(found, h5py.h5t.TypeFloatID):
        _, exponent_at, exponent, _, mantissa = found.get_fields()
        dtype = _FLOATS.get((found.get_size(), exponent_at, exponent, mantissa, found.get_ebias()))
        if dtype is None:
            raise InputMalformed(
                f"{name}: a float of {8 * found.get_size()} bits with {exponent} exponent bits found, "
                f"expected float16, bfloat16, float32 or float64; convert it"
            )
        return dtype, found.get_order() == h5py.h5t.ORDER_LE, None
    try:
        plain = found.dtype
    except TypeError as error:
        raise InputMalformed(f"{name}: {error}; expected float16, bfloat16, float32 or float64") from error
    dtype, note = storage_of(plain, name, wanted)
    return dtype, True, note
