"""Which run serves a plan, and which writer its sparse output."""

from __future__ import annotations

import os

from streamattn_cli.engine.passes.causal import Causal, CausalSequences
from streamattn_cli.engine.passes.exact import Exact
from streamattn_cli.engine.passes.full import Full, FullSequences, WholeSequences
from streamattn_cli.engine.passes.lane_sketches import smaller
from streamattn_cli.engine.passes.paper import Paper
from streamattn_cli.engine.passes.parts import Pass
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import Run, auditor_of, lanes_of
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import AttendRequest, QueryRequest, Request
from streamattn_cli.engine.saving.saver import Saver
from streamattn_cli.errors import NonFinite, UsageError
from streamattn_cli.options import files_of
from streamattn_cli.rows.inputs.fingerprint import refuse_inputs
from streamattn_cli.rows.targets import SEQUENCE, numbered, refuse_existing, refuse_same, side_of
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.writer import check_target, open_writer


def make_run(plan: Plan, watch: Watch, writer: Writer, doubts: Writer | None = None, saver: Saver | None = None) -> Run:
    """The Run of a plan; doubts: the writer of --doubt."""
    lanes, paper = lanes_of(plan), bool(plan.problem.sketches)
    # where keys and values pass apart, or keys several times, all exact answers wait for the second pass
    auditor = auditor_of(plan, lanes, again=not paper, postponed=paper or plan.problem.method == "exact")
    return Run(plan, watch, pass_of(plan), writer, doubts, lanes, auditor, saver)


def pass_of(plan: Plan) -> type[Pass]:
    """The pass that serves a plan."""
    p = plan.problem
    if p.sketches:
        return Paper
    if p.method == "exact":
        return Exact
    if p.causal:
        return CausalSequences if p.sequences and p.later else Causal
    if p.sequences:
        return WholeSequences if plan.whole_sequences else FullSequences
    return Full


def check_output(request: AttendRequest | QueryRequest) -> None:
    """Refuse an output that cannot be opened, or that is an input, without touching anything. Raises UsageError and
    OutputFailed."""
    written = [request.output, side_of(request.output)]
    if isinstance(request, QueryRequest):
        refuse_inputs((*written, *numbered(request.output)), (*files_of_request(request), request.sketch))
        goes_on = False
    else:
        written += [request.doubt, side_of(request.doubt)]
        refuse_inputs((*written, *numbered(request.output), request.checkpoint), files_of_request(request))
        names = "-o", "-o", "--doubt", "--doubt", "--checkpoint"
        refuse_same(zip(names, (*written, request.checkpoint), strict=True))
        _check_kind(request)
        goes_on = request.resume and request.checkpoint is not None and os.path.exists(request.checkpoint)
    if request.output != "-":
        check_target(request.output)
    refuse_existing(written, request.force or goes_on)


def files_of_request(request: Request) -> list[str | None]:
    """The words of a request that may name a file that is read."""
    spec = request.inputs
    return [spec.input, *spec.more, *files_of(spec), *files_of(request)]


def _check_kind(request: AttendRequest) -> None:
    """Refuse (UsageError) outputs that cannot be what is asked for."""
    if request.doubt:
        _check_doubt(request, request.doubt)
    if request.top_k:
        from streamattn_cli.rows.writers.hdf5sparse import check_sparse

        check_sparse(request.output)
    if request.repair and request.output == "-":
        raise UsageError("--repair: standard output cannot be written twice; give -o FILE.npy or -o FILE.h5")


def _check_doubt(request: AttendRequest, doubt: str) -> None:
    if doubt == "-" or check_target(doubt) == "special":
        raise UsageError(f"--doubt {doubt}: give the name of a file in .npy or .h5")
    if SEQUENCE in doubt:
        raise UsageError(f"--doubt {doubt}: one file has the rows of all sequences; omit {SEQUENCE}")
    if request.top_k or request.sketches:
        raise UsageError("--doubt: rows of --top-k and --sketches are not written one by one; omit it")


def open_doubt(problem: Problem, going_on: tuple[str, int] | None, tag: str | None) -> Writer | None:
    """The writer of --doubt: rows x heads in float16; None where none was asked for. See open_writer."""
    name = problem.request.doubt
    if not name:
        return None
    return open_writer(name, problem.q.rows, len(problem.q), 1, "f2", "TC", going_on=going_on, tag=tag)


def check_finite(counts: dict[str, int], nan_policy: str, output: str, v: Heads | None = None) -> None:
    """Refuse (NonFinite) to write answers that are not finite, unless --nan-policy drop allows it. v: where the values are at
    hand."""
    count = counts.get("not_finite_answers", 0)
    if not counts.get("dropped_keys"):  # a query that saw no token, and was not guarded, had no finite logit
        count += max(0, counts.get("unanswered_queries", 0) - counts.get("guarded_queries", 0))
    if count and nan_policy != "drop":
        piped = output == "-"
        written = "those before the end were written already" if piped else "nothing was written"
        raise NonFinite(
            f"{'standard output' if piped else output}: {count} answers are not finite in the output: sums of values, "
            f"logits or --out-dtype go beyond the range of the dtype; {written}. Use a wider --out-dtype, {smaller(v)}, scale "
            "logits down (--scale), or write them with --nan-policy drop"
        )


def open_sparse(problem: Problem, output: str, k: int, tag: str | None) -> Writer:
    """The writer of --top-k; tag: see open_writer."""
    from streamattn_cli.rows.writers.hdf5sparse import TopKWriter

    heaps = problem.sketches is None or problem.sketches.heaps
    return TopKWriter(output, k, len(problem.q), problem.v.dim, problem.request.deviation, heaps, tag)
