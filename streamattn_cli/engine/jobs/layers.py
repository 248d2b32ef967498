"""`attend --layer`: the layers of a dump one after the other, each a run of its own, reported as one."""

from __future__ import annotations

from dataclasses import replace

from streamattn_cli.engine.jobs.attend import attend, plan_attend
from streamattn_cli.engine.jobs.sheets import dataset_of, into, is_joint, joint_file, sheets_of
from streamattn_cli.engine.jobs.spread import attend_spread
from streamattn_cli.engine.jobs.summary import together
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.events import Event, Finished, Listener, Note, Outcome, Progress
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import StreamattnError, UsageError
from streamattn_cli.rows.inputs.layers import PLACE
from streamattn_cli.rows.targets import refuse_existing


def attend_layers(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Run a request for every layer that it asks for. Raises the errors of errors.py: layers with files of their own that
    are complete stay."""
    sheets = sheets_of(request)
    if len(sheets) > 1 and request.checkpoint:
        if PLACE not in request.checkpoint:  # one for all of them is that of a job that is cut into pieces
            return attend_spread(request, listener, interrupts)
        if is_joint(request.output):
            raise UsageError(
                f"--checkpoint {request.checkpoint}: one output of all layers is saved with them: omit {PLACE}"
            )
    layers = [layer for layer, _ in sheets]
    refuse_existing([each.output for _, each in sheets], request.force or request.resume)
    going_on = StreamattnError if request.keep_going else ()
    plans = {}
    results: dict[int, Outcome | StreamattnError] = {}
    for at, (_, each) in enumerate(sheets):  # what cannot run is refused before anything does
        try:
            plans[at] = plan_attend(each)
        except going_on as error:
            results[at] = error
    joint = joint_file(request, [layers[at] for at in plans], list(plans.values()), len(layers)) if plans else None
    try:
        for at in plans:
            layer, each = sheets[at]
            listener(Note(f"layer {layer.number} ({layer.group}), {at + 1} of {len(layers)}"))
            more = {"open_output": into(joint, layer)} if joint else {}
            try:
                results[at] = attend(each, _quietly(listener, len(layers), at), interrupts, **more)
            except going_on as error:
                results[at] = error
                if joint:
                    joint.remove(dataset_of(layer))
        outcome = together(request.output, layers, [results[at] for at in range(len(layers))])
        if joint:
            joint.commit()
    finally:
        if joint:
            joint.abort()
    listener(Finished(outcome))
    return outcome


def plan_layers(request: AttendRequest) -> Plan:
    """Of the plans of all layers the one that needs most memory."""
    return max((plan_attend(each) for _, each in sheets_of(request)), key=lambda plan: plan.projected)


def _quietly(listener: Listener, sheets: int, done: int) -> Listener:
    """Of a layer everything but its end is told, with how many are done."""

    def told(event: Event) -> None:
        if isinstance(event, Progress):
            event = replace(event, sheets=sheets, sheets_done=done)
        if not isinstance(event, Finished):
            listener(event)

    return told
