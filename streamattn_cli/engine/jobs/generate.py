"""Generate rows and write them: the pass behind `streamattn generate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from streamattn_cli.engine.jobs.ceremony import metering
from streamattn_cli.engine.passes.pump import Teller, pump
from streamattn_cli.engine.watch.events import Finished, Listener, Outcome
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import UsageError
from streamattn_cli.rows.synthetic.generated import SyntheticSpec
from streamattn_cli.rows.synthetic.sinks import names_of, open_sink
from streamattn_cli.rows.targets import refuse_existing
from streamattn_cli.rows.tensors.readahead import ReadAhead
from streamattn_cli.rows.tensors.tensor import row_bytes
from streamattn_cli.rows.writers.recordout import waits

BLOCK_BYTES = 1 << 20
OVERHEAD_BYTES = 1 << 20  # the reading thread, the meter and the interpreter's own arenas


@dataclass(frozen=True)
class GenerateRequest:
    """What to make, which tensors of it to write (one of EMITS), and where to; block_rows None: about
    BLOCK_BYTES at a time."""

    spec: SyntheticSpec
    emit: str
    target: str
    raw: bool = False
    block_rows: int | None = None
    force: bool = False


def run_generate(request: GenerateRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Write all rows; the outcome has been given to the listener, too.

    Raises UsageError for words that contradict each other, OutputFailed, BrokenPipeError when the reader of a pipe has
    gone, Interrupted after a signal. No file has its name in any of these cases.
    """
    if request.block_rows is not None and request.block_rows < 1:
        raise UsageError(f"--block-rows is {request.block_rows}: it must be at least 1")
    refuse_existing(names_of(request.emit, request.target, request.raw), request.force)
    with interrupts.at_once(waits(request.target)):
        sink = open_sink(request.spec, request.emit, request.target, request.raw)
    withdraw = interrupts.on_abort(sink.abort)
    try:
        for tensor in sink.tensors:
            tensor.peek(1)  # loads the kernels, so that they count as the process and not as the work
        with metering(listener, interrupts) as work:
            block_rows = request.block_rows or _block_rows(sink.tensors)
            blocks = ReadAhead(sink.tensors, 0, request.spec.rows, block_rows, check=interrupts.check)
            rows = pump(blocks, sink.take, work.watch, Teller(work.watch, blocks, Phase.GENERATE, request.spec.rows))
            sink.commit(_meta(request))
        held = OVERHEAD_BYTES + blocks.bytes_held + sum(tensor.held_bytes for tensor in sink.tensors)
    finally:
        sink.abort()
        withdraw()
    outcome = work.told("generate", {"params": _meta(request)}, rows, request.target, {"projected": held})
    listener(Finished(outcome))
    return outcome


def _block_rows(tensors: list) -> int:
    return max(1, BLOCK_BYTES // sum(row_bytes(tensor) for tensor in tensors))


def _meta(request: GenerateRequest) -> dict:
    """What a reader of the rows wants to know; `scale` is what attention uses."""
    return {**asdict(request.spec), "emit": request.emit}
