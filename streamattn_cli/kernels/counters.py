"""Random numbers by counter: splitmix64, so that nothing of the size of the stream is stored, and shards, pipes and machines agree.

Unsigned products wrap around on purpose: without JIT the caller silences NumPy's overflow warning.
"""

import numpy as np

from streamattn_cli.kernels.jit import kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # counters are multiples of it
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)


def mixed(x):
    """The random bits of a counter: uint64, or an array of these."""
    x = (x ^ (x >> _U30)) * _MIX1
    x = (x ^ (x >> _U27)) * _MIX2
    return x ^ (x >> _U31)


mix = kernel(inline="always")(mixed)
