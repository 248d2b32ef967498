"""What is measured on: key heads of dumps, and two generated streams on which coresets are put under stress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamattn_cli.sketches.rope import rope_word


@dataclass
class Head:
    """One key head: q (heads, n, d), k (n, d), c (n, dv + 1) = [v, 1], float32; `storage` is what its dump holds."""

    name: str
    q: np.ndarray
    k: np.ndarray
    c: np.ndarray
    scale: float
    storage: str
    needles: np.ndarray | None = None  # rows whose query needs one rare key
    rope: str = ""  # rotary positions, see sketches.rope.rope_word

    @property
    def rows(self) -> int:
        """n."""
        return len(self.k)


def dumped(path: Path) -> list[tuple[str, int]]:
    """Names 'file:key head' of a dump's heads, and their rows."""
    import h5py

    with h5py.File(path) as file:
        return [(f"{path}:{h}", file["k"].shape[0]) for h in range(file["k"].shape[1])]


def load(name: str, rows: int) -> Head:
    """The first rows of the head of a name given by `dumped`, or the stress stream 'drift' or 'needles'."""
    if name in ("drift", "needles"):
        return drift() if name == "drift" else needles()
    import h5py

    path, h = name.rsplit(":", 1)
    h = int(h)
    with h5py.File(path) as file:
        group = file["q"].shape[1] // file["k"].shape[1]
        q = file["q"][:rows, h * group : (h + 1) * group].astype("f4").transpose(1, 0, 2)
        k, v = file["k"][:rows, h].astype("f4"), file["v"][:rows, h].astype("f4")
        scale, theta, pairs = (file.attrs.get(name) for name in ("scale", "rope_theta", "rope_pairs"))
    if theta and not pairs and "smollm2" in Path(path).stem.lower():
        pairs = "interleaved"  # in files that do not say so
    rope = rope_word(float(theta), pairs) if theta and pairs else ""
    return Head(f"{Path(path).stem}:{h}", np.ascontiguousarray(q), k, _weighed(v), float(scale), "f2", rope=rope)


def drift(rows: int = 8192, dim: int = 64, topics: int = 24, seed: int = 1) -> Head:
    """Topics of about 340 rows that come and go: keys and queries gather round the topic's direction, and one query in
    eight asks for a topic of before."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((topics, dim))
    values = rng.standard_normal((topics, dim))
    topic = np.repeat(rng.integers(0, topics, -(-rows // 340)), 340)[:rows]
    k = 0.8 * centres[topic] + rng.standard_normal((rows, dim))
    v = values[topic] + rng.standard_normal((rows, dim))
    asked = np.where(rng.random(rows) < 0.125, topic[rng.integers(0, np.arange(rows) + 1)], topic)
    q = (0.8 * centres[asked] + rng.standard_normal((rows, dim)))[None]
    return _head("drift", q, k, v)


def needles(rows: int = 8192, dim: int = 64, count: int = 64, seed: int = 2) -> Head:
    """Keys and queries without structure; `count` keys in the first half lie in directions of their own, and each is
    asked for once, in the second half, by a query that gives it nearly all of its mass."""
    rng = np.random.default_rng(seed)
    k, v, q = (rng.standard_normal((rows, dim)) for _ in range(3))
    planted = np.sort(rng.choice(np.arange(64, rows // 2), count, replace=False))
    asking = np.sort(rng.choice(np.arange(rows // 2, rows), count, replace=False))
    directions = rng.standard_normal((count, dim))
    directions *= 12 / np.linalg.norm(directions, axis=1, keepdims=True)
    k[planted], q[asking] = directions, directions
    head = _head("needles", q[None], k, v)
    head.needles = asking
    return head


def _head(name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Head:
    q, k, v = (np.ascontiguousarray(x.astype("f2").astype("f4")) for x in (q, k, v))
    return Head(name, q, k, _weighed(v), q.shape[-1] ** -0.5, "f2")


def _weighed(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v, np.ones((len(v), 1), "f4")], axis=1)
