"""The exact best entries of columns, by heaps."""

import h5py
import naive_sketches as naive
import numpy as np
import pytest

from streamattn_cli.errors import OutputFailed, UsageError
from streamattn_cli.rows.writers.hdf5sparse import TopKWriter, check_sparse
from streamattn_cli.rows.writers.topk import BestRows


def _dense(sparse, n, dim):
    out = np.zeros((n, dim))
    out[sparse.rows, sparse.columns] = sparse.values
    return out


@pytest.mark.parametrize("deviation", [False, True])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_heaps_hold_the_best_k(rng, k, deviation):
    x = rng.standard_normal((40, 2, 3)).astype(np.float32) + 0.5
    best = BestRows(k, 2, 3, deviation)
    for a, b in ((0, 1), (1, 14), (14, 40)):
        best.offer(a, x[a:b])
    for head in range(2):
        found = best.head(head)
        wide = x[:, head].astype(np.float64)
        wide = wide - wide.mean(axis=0) if deviation else wide
        expected = np.stack([naive.best_k(wide[:, c], k) for c in range(3)], axis=1)
        np.testing.assert_allclose(_dense(found, 40, 3), expected, atol=1e-12)
        np.testing.assert_allclose(found.zero, np.linalg.norm(wide, axis=0), rtol=1e-9)
        np.testing.assert_allclose(found.best, np.linalg.norm(wide - expected, axis=0), rtol=1e-6, atol=1e-6)


def test_rows_that_are_not_finite_are_passed_over():
    x = np.array([1.0, np.nan, -3.0, np.inf]).reshape(4, 1, 1)
    best = BestRows(2, 1, 1, False)
    best.offer(0, x)
    assert best.head(0).rows.tolist() == [0, 2] and best.head(0).values.tolist() == [1.0, -3.0]


def test_of_equal_entries_the_first_rows_stay():
    best = BestRows(2, 1, 1, False)
    best.offer(0, np.array([1.0, -1, 1, 1]).reshape(4, 1, 1))
    assert best.head(0).rows.tolist() == [0, 1]


def test_the_file(tmp_path, rng):
    x = rng.standard_normal((30, 2, 2))
    writer = TopKWriter(str(tmp_path / "x.h5"), 3, 2, 2, True)
    writer.write(0, x)
    said = writer.finish()
    assert list(tmp_path.glob("x.h5")) == []
    writer.commit({"method": "exact", "top_k": said})
    assert said["by"] == "heaps" and said["recovery_ratio"] == {"median": 1.0, "worst": 1.0}
    assert said["entries"] == 12 and said["zero_ratio"]["worst"] > 1
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(file) == ["head_0", "head_1"] and file.attrs["method"] == "exact"
        group = file["head_1"]
        np.testing.assert_allclose(group["reference"], x[:, 1].mean(axis=0))
        rebuilt = group["value"][:] + group["reference"][:][group["column"][:]]
        np.testing.assert_allclose(rebuilt, x[group["row"][:], 1, group["column"][:]])


def test_more_entries_than_rows_are_refused_and_nothing_is_left(tmp_path):
    writer = TopKWriter(str(tmp_path / "x.h5"), 3, 1, 1, False)
    writer.write(0, np.ones((2, 1, 1)))
    with pytest.raises(UsageError, match="only 2 query rows"):
        writer.finish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_only_hdf5_can_hold_it(tmp_path):
    with pytest.raises(UsageError, match="give -o FILE.h5"):
        check_sparse(str(tmp_path / "x.npy"))
    with pytest.raises(OutputFailed, match="No such file"):
        TopKWriter(str(tmp_path / "missing" / "x.h5"), 3, 1, 1, False)
