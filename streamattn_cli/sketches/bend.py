"""What models do to logits before the softmax, beside scaling them: softcapping and ALiBi (METHODS.md (A12), (A13))."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SLOPE = "slope"  # of --logit-bias: the standard slopes


@dataclass(frozen=True)
class Bend:
    """cap: logits x become cap tanh(x / cap); 0 for none. slopes (query heads): of ALiBi; empty for none. standard: they
    will be the standard ones, of as many query heads as ask a sketch.

    Only where keys are there as they are can logits be bent: in windows, among sinks, and by exact attention.
    """

    cap: float = 0.0
    slopes: tuple[float, ...] = ()
    standard: bool = False

    def __bool__(self) -> bool:
        return bool(self.cap or self.slopes or self.standard)

    @classmethod
    def of_facts(cls, facts: dict) -> Bend:
        """The one that `facts` describes."""
        slopes = facts.get("slopes", ())
        return cls(facts.get("softcap", 0.0), () if slopes == SLOPE else tuple(slopes), slopes == SLOPE)

    def facts(self) -> dict:
        """JSON-able form; nothing of what there is not."""
        slopes = SLOPE if self.standard else list(self.slopes)
        return ({"softcap": self.cap} if self.cap else {}) | ({"slopes": slopes} if slopes else {})

    def of(self, heads: slice) -> Bend:
        """That of some query heads."""
        return replace(self, slopes=self.slopes[heads])

    def numbers(self, dtype: np.dtype) -> tuple:
        """The first two of what kernels/bend.py takes."""
        return dtype.type(self.cap), np.array(self.slopes, dtype)


STRAIGHT = Bend()


def standard_slopes(heads: int) -> tuple[float, ...]:
    """The slopes of ALiBi (arXiv 2108.12409): 2^(-8/n), 2^(-16/n), ... 2^-8, n the largest power of two that is not above the
    number of heads; those that remain take every other slope of 2n heads. So do BLOOM, MPT, Falcon and llama.cpp."""
    n = 1 << (heads.bit_length() - 1)
    of_more = (2.0 ** (-4 * (2 * i + 1) / n) for i in range(heads - n))
    return (*(2.0 ** (-8 * (i + 1) / n) for i in range(n)), *of_more)
