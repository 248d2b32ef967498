"""The kernels' small tests once more, without the compiler: there index errors raise and integers do not wrap."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SELECTED = [
    "tests/kernels/test_atoms.py",
    "tests/kernels/test_half.py::test_every_half_widens_as_in_numpy",
    "tests/kernels/test_half.py::test_singles_narrow_as_in_numpy",
    "tests/sketches/test_nystrom.py::test_compression_is_the_naive_one",
    "tests/sketches/test_nystrom.py::test_query_model_is_the_naive_one",
    "tests/sketches/test_nystrom.py::test_one_kernel_for_whole_streams_does_what_many_do",
    "tests/sketches/test_rotary.py::test_rows_are_turned_as_the_loops_turn_them",
    "tests/sketches/test_rotary.py::test_compression_for_queries_ahead_is_the_naive_one",
    "tests/sketches/test_rotary.py::test_a_stream_learns_its_queries_turned_back",
    "tests/kernels/test_kernels.py",
    "tests/sketches/test_exact.py::test_small_against_the_loops",
    "tests/sketches/test_exact.py::test_huge_logits",
    "tests/sketches/test_exact.py::test_small_shares_against_the_loops",
    "tests/sketches/test_sketches.py::test_poly_is_naive_poly",
    "tests/sketches/test_sketches.py::test_window_is_naive_windowed",
    "tests/sketches/test_sketches.py::test_queries_that_the_polynomial_cannot_answer_are_guarded",
    "tests/sketches/test_psi.py::test_places_are_those_of_the_explicit_matrix",
    "tests/sketches/test_phi.py::test_both_sketches_are_their_explicit_matrices",
    "tests/sketches/test_phi.py::test_all_rows_are_found_when_k_is_all",
    "tests/sketches/test_phi.py::test_phi_of_the_features_is_phi_of_the_outputs",
    "tests/sketches/test_topk.py::test_the_heaps_hold_the_best_k",
]


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="already without the compiler")
def test_without_compiler():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *SELECTED]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed in", run.stdout)
    assert passed and int(passed[1]) > 100, run.stdout
