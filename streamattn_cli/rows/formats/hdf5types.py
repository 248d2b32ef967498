"""Storage dtypes of HDF5 types, told by their bit fields: bfloat16 has no NumPy type, only a custom HDF5 float."""

from __future__ import annotations

import h5py

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.dtypes import DTYPES, EXPECTED, storage_of

# (bytes, exponent position, exponent bits, mantissa bits, exponent bias)
_FLOATS = {(d.itemsize, d.mantissa, d.exponent, d.mantissa, d.bias): name for name, d in DTYPES.items()}


def file_storage(found: h5py.h5t.TypeID, name: str, wanted: str | None) -> tuple[str, bool, str | None]:
    """(storage dtype, whether the bytes in the file are it as they are, note). Raises InputMalformed."""
    if isinstance(found, h5py.h5t.TypeFloatID):
        _, exponent_at, exponent, _, mantissa = found.get_fields()
        dtype = _FLOATS.get((found.get_size(), exponent_at, exponent, mantissa, found.get_ebias()))
        if dtype is None:
            raise InputMalformed(
                f"{name}: a float of {8 * found.get_size()} bits with {exponent} exponent bits found, "
                f"expected {EXPECTED}; convert it"
            )
        return dtype, found.get_order() == h5py.h5t.ORDER_LE, None
    try:
        plain = found.dtype
    except TypeError as error:
        raise InputMalformed(f"{name}: {error}; expected {EXPECTED}") from error
    dtype, note = storage_of(plain, name, wanted)
    return dtype, True, note
