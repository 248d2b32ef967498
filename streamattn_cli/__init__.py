"""streamattn: attention over token streams far longer than memory.

From Python: `from streamattn_cli import attend, audit, compare, open_sketch, AttentionSketch, CausalAttention` (see
api.py and api_causal.py).
"""

import hashlib
import os
from pathlib import Path


def _kernel_cache() -> str:
    """A folder for compiled kernels that is named by the kernels' sources.

    Numba's on-disk cache looks only at the file of the function itself, so a change in an inlined callee of another
    module would go unseen; a folder per state of the sources cannot be stale.
    """
    digest = hashlib.sha256()
    for source in sorted((Path(__file__).parent / "kernels").glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    home = os.environ.get("NUMBA_CACHE_DIR")
    if home and os.path.basename(home).startswith("kernels-"):  # set by a parent process of ours
        home = os.path.dirname(home)
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "streamattn")
    return os.path.join(home, "kernels-" + digest.hexdigest()[:16])


os.environ["NUMBA_CACHE_DIR"] = _kernel_cache()


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is first used: it needs NumPy and Numba, `import streamattn_cli` does not."""
    if name in ("AttentionSketch", "attend", "audit", "compare", "open_sketch"):
        from streamattn_cli import api

        return getattr(api, name)
    if name == "CausalAttention":
        from streamattn_cli.api_causal import CausalAttention

        return CausalAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
