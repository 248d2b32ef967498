"""Writes sequence states as llama.cpp does."""

import struct

import numpy as np

TYPES = {"<f4": 0, "<f2": 1, "<u2": 30}


def save(path, layers, transposed=False, version=3, more=0, kinds=None, positions=None, streams=1, behind=b""):
    """layers: (keys, values) of each, (T, C). streams: 0 as before there were any. more: bytes of a cell besides; kinds: other
    numbers of types."""
    cells = len(layers[0][0])
    data = b"qsgg" + struct.pack("<III", version, 2, 11) + struct.pack("<i", 12)
    data += struct.pack("<I", streams) if streams else b""
    for stream in range(streams or 1):
        data += struct.pack("<I", cells if stream + 1 >= streams else 0)
    for position in positions if positions is not None else range(cells):
        data += struct.pack("<iI", position, 1 if streams else 0)
        data += bytes(more) + struct.pack("<i", 0) if streams else b""
    data += struct.pack("<II", transposed, len(layers))
    for keys, _ in layers:
        kind = (kinds or TYPES)[keys.dtype.str]
        data += struct.pack("<iQ", kind, keys[0].nbytes) + keys.tobytes()
    for _, values in layers:
        kind = (kinds or TYPES)[values.dtype.str]
        if transposed:
            data += (
                struct.pack("<iII", kind, values.itemsize, values.shape[1]) + np.ascontiguousarray(values.T).tobytes()
            )
        else:
            data += struct.pack("<iQ", kind, values[0].nbytes) + values.tobytes()
    path.write_bytes(data + behind)
    return path
