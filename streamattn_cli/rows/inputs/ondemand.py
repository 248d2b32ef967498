"""Files of a long stream, opened as their rows come: more of them than may be open at the same time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np

from streamattn_cli.errors import SourceChanged
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.tensor import RowTensor, SeekableTensor, row_count

MOST_OPEN = 8


class OpenFiles:
    """Keeps the `most` files open that were read last."""

    def __init__(self, most: int):
        self.most = most
        self._open: OrderedDict[int, Inputs] = OrderedDict()
        self._specs: list[InputSpec] = []

    def put_away(self, spec: InputSpec, inputs: Inputs, files: int) -> Inputs:
        """Close an input, one of `files`, and give one that opens it again when a row is read."""
        number = len(self._specs)
        made: dict[int, OnDemand] = {}
        self._specs.append(spec)

        def later(part: str) -> Heads:
            heads = inputs.heads[part]
            tensor = made.setdefault(id(heads.tensor), OnDemand(self, number, part, heads.tensor, self.most / files))
            return replace(heads, tensor=tensor)

        k, v = later("k"), later("v")
        q = later("q") if spec.own_queries else None
        inputs.close()
        return replace(inputs, q=q, k=k, v=v)

    def tensor(self, number: int, part: str) -> RowTensor:
        """The tensor of k, v or (of own queries) q of a file, open."""
        if number not in self._open:
            while len(self._open) >= self.most:
                self._open.popitem(last=False)[1].close()
            spec = self._specs[number]
            self._open[number] = open_inputs(spec, need_q=spec.own_queries)
        self._open.move_to_end(number)
        return self._open[number].heads[part].tensor

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()


class OnDemand(SeekableTensor):
    """A seekable RowTensor whose file is opened when a row is read; the files are closed together."""

    def __init__(self, files: OpenFiles, number: int, part: str, tensor: RowTensor, share: float):
        self._files, self._number, self._part = files, number, part
        self.name, self.path, self.dtype = tensor.name, tensor.path, tensor.dtype
        self.outer, self.width, self.rows = tensor.outer, tensor.width, row_count(tensor)
        self.held_bytes = int(tensor.held_bytes * share) + 1

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        return self._again().read_into(buf, start, segment)

    def peek(self, n: int) -> np.ndarray:
        return self._again().peek(n)

    def _again(self) -> RowTensor:
        tensor = self._files.tensor(self._number, self._part)
        if (tensor.outer, tensor.width, tensor.dtype, tensor.rows) != (self.outer, self.width, self.dtype, self.rows):
            raise SourceChanged(
                f"{self.name}: has another shape than when the run began; run again when it is complete"
            )
        return tensor
