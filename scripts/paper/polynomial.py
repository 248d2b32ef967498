"""Error against degree: Taylor, minimax, fitted and Hermite polynomials in place of e^x."""

from __future__ import annotations

from math import factorial

import numpy as np
from results import figure, keep
from svgplot import Figure

from streamattn_cli.kernels.expansion import hermite

DEGREES = range(1, 13)


def taylor(x: np.ndarray, degree: int) -> np.ndarray:
    """The Taylor polynomial of e^x at x."""
    return sum(x**l / factorial(l) for l in range(degree + 1))


def minimax_error(beta: float, degree: int) -> float:
    """The least largest relative error |P(x) e^-x - 1| on [-beta, beta], by Lawson's reweighted least squares."""
    x = beta * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    basis = np.polynomial.chebyshev.chebvander(x / beta, degree) * np.exp(-x)[:, None]
    weights, best = np.full(len(x), 1 / len(x)), np.inf
    for _ in range(300):
        root = np.sqrt(weights)
        rest = np.abs(basis @ np.linalg.lstsq(basis * root[:, None], root, rcond=None)[0] - 1)
        best = min(best, float(rest.max()))
        weights = weights * (rest + 1e-300)
        weights /= weights.sum()
    return best


def attention_errors(spread: float, degree: int, power: int) -> dict[str, float]:
    """Root of E (P - e^x)^2 e^(-power x), relative to the same of e^x, over logits x ~ N(0, spread^2).

    power 0: the error of outputs whose values know nothing of the logits. power 1: the relative error of the weights,
    under the softmax itself, whose mean and variance METHODS.md (P8) takes.
    """
    x = np.linspace(-8 * spread, 8 * spread, 20001)
    density = np.exp(-(x**2) / (2 * spread**2) - power * x)
    size = np.sqrt((density * np.exp(2 * x)).sum())

    def error(p: np.ndarray) -> float:
        return float(np.sqrt((density * (p - np.exp(x)) ** 2).sum()) / size)

    powers, root = np.polynomial.chebyshev.chebvander(x / x[-1], degree), np.sqrt(np.exp(-(x**2) / (2 * spread**2) - x))
    grid = root + 1e-4 * root.max() * (np.abs(x) < 4 * spread)  # a little weight everywhere
    fitted = powers @ np.linalg.lstsq(powers * grid[:, None], np.exp(x) * grid, rcond=None)[0]
    expansion = np.empty((degree + 1, 1))
    hermite(np.zeros(1), np.array([spread**2]), expansion)
    ours = sum(c * x**l for l, c in enumerate(expansion[:, 0])) * np.exp(spread**2 / 2)
    return {"Taylor": error(taylor(x, degree)), "fitted": error(fitted), "Hermite (ours)": error(ours)}


def error_against_degree() -> None:
    """Three figures: the worst case on [-beta, beta], and two ways in which attention over Gaussian logits sees
    errors."""
    rows = []
    worst = Figure("Largest relative error of P on [-beta, beta]", "degree", "max |P(x)/e^x - 1|", log_x=False)
    for beta in (1, 2, 4, 6, 8):
        x = np.linspace(-beta, beta, 2001)
        lines = {
            "minimax": [(g, minimax_error(beta, g)) for g in DEGREES],
            "Taylor": [(g, float(np.abs(taylor(x, g) * np.exp(-x) - 1).max())) for g in DEGREES],
        }
        for name, points in lines.items():
            if beta in (1, 2, 4, 8):
                worst.line(f"{name}, beta {beta}", points, dashed=name == "Taylor")
            rows += [(name, "beta", float(beta), g, error) for g, error in points]
    figure(worst, "degree_worst")
    for power, kind, name in ((0, "outputs", "independent values"), (1, "weights", "weights, under the softmax")):
        seen = Figure(
            f"Error of attention over logits N(0, std^2): {name}", "degree", "relative error (rms)", log_x=False
        )
        for spread in (0.7, 1.5, 2.5):
            lines: dict[str, list] = {}
            for g in DEGREES:
                for polynomial, error in attention_errors(spread, g, power).items():
                    lines.setdefault(polynomial, []).append((g, error))
            for polynomial, points in lines.items():
                seen.line(f"{polynomial}, std {spread:g}", points, dashed=polynomial == "Taylor")
                rows += [(polynomial, f"logit_std, {kind}", spread, g, error) for g, error in points]
        figure(seen, f"degree_{kind}")
    keep("degree", ("polynomial", "range_kind", "range", "degree", "relative_error"), rows)
