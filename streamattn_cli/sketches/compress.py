"""One compression of a weighted set of keys under a Gaussian model of the queries (methods.md 3.2-3.3)."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import atoms

ALPHA = 1.0  # exponent of the normaliser model p_q(k) = e^(s q.x) / e^(alpha/2 s^2 q^T Sk q)
RIDGE = 1e-6
LOWEST = -600.0  # of the log diagonal below its maximum, so that its reciprocal stays finite
SMALL = 128  # triangles up to this size are inverted directly


def compress(
    keys: np.ndarray,
    coefs: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    scale: float,
    temper: float,
    keep: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `keep` of n atoms and their new coefficients so that sum_a e^(s q.k_a) C_a changes least for q ~ N(mean, cov).

    keys (n, d), coefs (n, c), mean (d,), covariance (d, d): float64. temper (0..1] flattens the log diagonal of the
    kernel, for a model of the queries that over-trusts keys far out. Returns the survivors' indices, ascending, and
    their coefficients (keep, c).
    """
    x = keys - keys.mean(axis=0)
    spread = x.T @ x / len(x)
    inner = np.linalg.inv(np.linalg.inv(covariance) + (2 * ALPHA * scale * scale) * spread)
    inner = (inner + inner.T) / 2
    z = x @ (scale * np.linalg.cholesky(inner))
    half = 0.5 * np.einsum("ij,ij->i", z, z)
    # e = |z|^2/2 + s x^T A^-1 Sigma^-1 mu is the log of the kernel's diagonal root
    e = temper * (half + x @ (scale * (inner @ np.linalg.solve(covariance, mean))))
    h = np.exp(np.maximum(e - e.max(), LOWEST))
    kernel = z @ z.T
    kernel -= half[:, None]
    kernel -= half[None]
    np.exp(kernel, out=kernel)
    return reduce(kernel, h, coefs, keep)


def reduce(kernel: np.ndarray, root: np.ndarray, coefs: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for a given kernel (n, n), scaled to unit diagonal (and spoilt), and the roots (n,) of its diagonal."""
    w = coefs * root[:, None]
    index = np.flatnonzero(atoms.eliminate(_inverse_factor(kernel), w, len(w) - keep))
    return index, w[index] / root[index, None]


def _inverse_factor(kernel: np.ndarray) -> np.ndarray:
    """T = L^-1 for the Cholesky factor L of a kernel of unit diagonal plus a ridge, a larger one where it must be."""
    diagonal = kernel.reshape(-1)[:: len(kernel) + 1]
    ridge = RIDGE
    while True:
        diagonal[:] = 1 + ridge
        try:
            return _invert(np.linalg.cholesky(kernel))
        except np.linalg.LinAlgError:
            ridge *= 100


def _invert(lower: np.ndarray) -> np.ndarray:
    """Inverse of a lower triangular matrix by halves: two small inverses and two matrix products."""
    n = len(lower)
    out = np.zeros((n, n))
    if n <= SMALL:
        atoms.invert_triangle(np.ascontiguousarray(lower), out)
        return out
    m = n // 2
    out[:m, :m], out[m:, m:] = _invert(lower[:m, :m]), _invert(lower[m:, m:])
    out[m:, :m] = -out[m:, m:] @ (lower[m:, :m] @ out[:m, :m])
    return out
