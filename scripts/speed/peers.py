"""What users would pick instead: torch's exact attention, scikit-learn's random features, plain NumPy."""

from __future__ import annotations

import numpy as np
from machine import THREADS, TRIES, best

try:
    import torch
except ImportError:
    torch = None
try:
    from sklearn.kernel_approximation import PolynomialCountSketch
except ImportError:
    PolynomialCountSketch = None


def torch_seconds(rows: int, heads: int, dim: int, causal: bool, tries: int = TRIES) -> float | None:
    """Seconds of torch's scaled_dot_product_attention, float32, on all threads; None without torch."""
    if torch is None:
        return None
    torch.set_num_threads(THREADS)
    q, k, v = (torch.randn(1, heads, rows, dim) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        return best(lambda: attend(q, k, v, is_causal=causal), tries)


def numpy_exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Full attention in NumPy, 512 queries at a time; q, k (n, d), v (n, dv) float32."""
    out = np.empty((len(q), v.shape[1]), "f4")
    for a in range(0, len(q), 512):
        weights = scale * q[a : a + 512] @ k.T
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        out[a : a + 512] = weights @ v / weights.sum(axis=1, keepdims=True)
    return out


def linear(u1: np.ndarray, u2: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Linear attention: u1 (u2^T v) over u1 (u2^T 1); u1, u2 (n, t), v (n, dv)."""
    return (u1 @ (u2.T @ v)) / (u1 @ u2.sum(axis=0))[:, None]


def elu_features(x: np.ndarray) -> np.ndarray:
    """The features of linear transformers: elu(x) + 1."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))).astype("f4")


def sketched_features(q: np.ndarray, k: np.ndarray, scale: float, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Random features of (1 + s q.k / 4)^4, which comes near e^(s q.k), by scikit-learn's TensorSketch."""
    if PolynomialCountSketch is None:
        return None
    root = np.sqrt(scale / 4)
    made = PolynomialCountSketch(degree=4, gamma=1.0, coef0=1.0, n_components=size, random_state=0)
    return made.fit_transform(root * q), made.transform(root * k)
