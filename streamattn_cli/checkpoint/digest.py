"""The digest of a checkpoint, computed beside the writing of it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

_STEP = 1 << 22  # bytes between looks at whether to stop
_SMALL = 1 << 20  # bytes below which a thread is not worth while


class RunningDigest:
    """Context manager: SHA-256 of the buffers, in another thread if they are large (hashing releases the GIL).

    Leaving it early stops the thread, so that nothing looks at the buffers afterwards.
    """

    def __init__(self, buffers: Sequence[bytes | memoryview]):
        self._buffers = buffers
        self._digest = hashlib.sha256()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunningDigest:
        if sum(map(len, self._buffers)) >= _SMALL:
            self._thread = threading.Thread(target=self._run, name="checkpoint-digest", daemon=True)
            self._thread.start()
        else:
            self._run()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopped = True
        if self._thread:
            self._thread.join()

    def result(self) -> bytes:
        """The digest of all buffers; waits for it."""
        if self._thread:
            self._thread.join()
        return self._digest.digest()

    def _run(self) -> None:
        for buffer in self._buffers:
            for at in range(0, len(buffer), _STEP):
                if self._stopped:
                    return
                self._digest.update(buffer[at : at + _STEP])
