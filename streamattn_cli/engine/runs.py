"""Which run serves a plan, and which writer its sparse output."""

from __future__ import annotations

from streamattn_cli.engine.plan import Plan
from streamattn_cli.engine.pump import Watch
from streamattn_cli.engine.request import Problem
from streamattn_cli.engine.run import Run
from streamattn_cli.engine.settings import AttendRequest
from streamattn_cli.engine.sketched import SketchedRun
from streamattn_cli.rows.writers import Writer, check_target


def make_run(plan: Plan, watch: Watch, writer: Writer) -> Run:
    """The Run of a plan."""
    return (SketchedRun if plan.problem.sketches else Run)(plan, watch, writer)


def check_output(request: AttendRequest) -> None:
    """Refuse an output that cannot be opened, without touching anything. Raises UsageError and OutputFailed."""
    if request.top_k:
        from streamattn_cli.rows.hdf5sparse import check_sparse

        check_sparse(request.output)
    if request.output != "-":
        check_target(request.output)


def open_sparse(problem: Problem, tag: str | None):
    """The writer of --top-k; tag: see open_writer."""
    from streamattn_cli.rows.hdf5sparse import TopKWriter

    r = problem.request
    check_output(r)
    heaps = problem.sketches is None or problem.sketches.heaps
    return TopKWriter(r.output, r.top_k, len(problem.q), problem.v.dim, r.deviation, heaps, tag)
