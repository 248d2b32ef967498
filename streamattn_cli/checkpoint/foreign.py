"""What a file is that was given for a checkpoint and never was one, told by its first bytes."""

from __future__ import annotations

FIRST = 512  # bytes that are looked at
_MAGICS = {
    b"\x93NUMPY": "an .npy file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive (.npz?)",
    b"\x1f\x8b": "a gzip file",
}
_BEGINNING = b'{"__metadata__":{"container":"sattn/'  # of a checkpoint's JSON
_OURS = (b'"container"', b"sattn/")  # a changed bit spoils one of them only
_SAFETENSORS = (b'"dtype"', b'"__metadata__":{')


def foreign_kind(start: bytes) -> str | None:
    """What a file with these first bytes (FIRST of them, or all) is in words; None for what may be a checkpoint that
    was damaged: a changed bit or a truncation never makes one of these kinds of a checkpoint."""
    for magic, kind in _MAGICS.items():
        if start.startswith(magic):
            return kind
    tensors = start[8:10] == b'{"' and any(word in start for word in _SAFETENSORS)
    if tensors and not _BEGINNING.startswith(start[8:]) and not any(word in start for word in _OURS):
        return "a safetensors file"
    return "a text file" if len(start) >= 8 and _is_text(start) else None


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # or else a letter was cut in two
            return False
        text = start[: error.start].decode()
    return all(letter.isprintable() or letter in "\t\n\r\f" for letter in text)
