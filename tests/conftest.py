"""Before anything else: one BLAS thread (results must not depend on its split), and how much hypothesis searches."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"

import signal  # noqa: E402
import zlib  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if (
        signal.getsignal(_number) is signal.SIG_IGN
    ):  # a shell ignores them for what runs behind it, and so would what is tested
        signal.signal(_number, _handler)

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("nightly", deadline=None, max_examples=500, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

# The workers of pytest-xdist inherit the environment, so that one number repeats a whole run.
BASE_SEED = int(os.environ.setdefault(
    "STREAMATTN_TEST_SEED", "0" if PROFILE == "ci" else str(int.from_bytes(os.urandom(4)))
))  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """A nightly run searches from the printed seed unless --hypothesis-seed says otherwise."""
    if PROFILE != "ci" and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(BASE_SEED)


def pytest_terminal_summary(terminalreporter):
    """Print what repeats this run (a header would not be shown under -q)."""
    terminalreporter.write_line(f"HYPOTHESIS_PROFILE={PROFILE} STREAMATTN_TEST_SEED={BASE_SEED}")


@pytest.fixture
def rng(request):
    """A generator seeded by the test's name and the run's seed, which is printed when the test fails."""
    name = f"tests/{request.path.name}::{request.node.nodeid.partition('::')[2]}"  # wherever the file is
    seed = [BASE_SEED, zlib.crc32(name.encode())]
    print(f"seed {seed}")
    return np.random.default_rng(seed)
