"""streamattn: attention over token streams far longer than memory.

From Python: `from streamattn_cli import attend, audit, compare, open_sketch, AttentionSketch, CausalAttention` (see
api.py and api_causal.py).
"""


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is first used: it needs NumPy and Numba, `import streamattn_cli` does not."""
    if name in ("AttentionSketch", "attend", "audit", "compare", "open_sketch"):
        from streamattn_cli import api

        return getattr(api, name)
    if name == "CausalAttention":
        from streamattn_cli.api_causal import CausalAttention

        return CausalAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
