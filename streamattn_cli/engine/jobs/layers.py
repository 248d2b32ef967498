"""`attend --layer`: the layers of a dump one after the other, each a run of its own, reported as one."""

from __future__ import annotations

from streamattn_cli.engine.jobs.attend import attend, plan_attend
from streamattn_cli.engine.jobs.sheets import into, joint_file, sheets_of
from streamattn_cli.engine.jobs.summary import together
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.engine.watch.events import Finished, Listener, Note, Outcome
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.targets import refuse_existing


def attend_layers(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Run a request for every layer that it asks for. Raises the errors of errors.py: layers with files of their own that
    are complete stay."""
    sheets = sheets_of(request)
    layers = [layer for layer, _ in sheets]
    refuse_existing([each.output for _, each in sheets], request.force or request.resume)
    plans = [plan_attend(each) for _, each in sheets]  # what cannot run is refused before anything does
    joint = joint_file(request, layers, plans)
    outcomes = []
    try:
        for at, (layer, each) in enumerate(sheets):
            listener(Note(f"layer {layer.number} ({layer.group}), {at + 1} of {len(layers)}"))
            more = {"open_output": into(joint, layer)} if joint else {}
            outcomes.append(attend(each, _quietly(listener), interrupts, **more))
        if joint:
            joint.commit()
    finally:
        if joint:
            joint.abort()
    outcome = together(request, layers, outcomes)
    listener(Finished(outcome))
    return outcome


def plan_layers(request: AttendRequest) -> Plan:
    """Of the plans of all layers the one that needs most memory."""
    return max((plan_attend(each) for _, each in sheets_of(request)), key=lambda plan: plan.projected)


def _quietly(listener: Listener) -> Listener:
    """Of a layer everything but its end is told."""
    return lambda event: None if isinstance(event, Finished) else listener(event)
