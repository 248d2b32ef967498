"""`streamattn attend`: the main job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from streamattn_cli.cli import options
from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.options import option
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.options import SHOWN
from streamattn_cli.rows.spec import InputSpec

if TYPE_CHECKING:
    from streamattn_cli.engine.planning.plan import Plan
    from streamattn_cli.engine.watch.events import Outcome


@takes(InputSpec, AttendRequest, Shown)
def attend(
    words: Words,
    input: options.Input = None,
    output: options.Answers = "-",
    dry_run: Annotated[bool, option("--dry-run", help="Print the plan, touch nothing.", rich_help_panel=SHOWN)] = False,
) -> None:
    """Attention outputs for queries over keys and values of any length, in constant memory.

    streamattn attend heads.h5 --causal --resident-rows 512 -o out.npy --audit 64
    """
    from streamattn_cli.cli.streams import refuse_terminal
    from streamattn_cli.cli.words import request_of, run_and_render, show_json
    from streamattn_cli.errors import UsageError
    from streamattn_cli.report.text.plan import render_plan

    if words["keep_going"] and not words["layer"]:
        raise UsageError(
            "--keep-going finishes the other layers when some fail, so it needs --layer; give --layer, or omit --keep-going"
        )
    job, planned = _job(words)
    if not dry_run:
        refuse_terminal(output, words["json"])
        run_and_render(job, request_of(AttendRequest, words), words)
        return
    plan = planned(request_of(AttendRequest, words)).to_dict()
    if words["json"]:
        show_json({"type": "plan", **plan})
    else:
        render_plan(plan)


def _job(words: Words) -> tuple[Callable[..., Outcome], Callable[..., Plan]]:
    """What answers, and what plans it: of three modules the one that is needed."""
    if words["engine"] or words["share"] == "adaptive":
        from streamattn_cli.engine.jobs.spread import attend_spread, plan_spread

        return attend_spread, plan_spread
    if words["layer"]:
        from streamattn_cli.engine.jobs.layers import attend_layers, plan_layers

        return attend_layers, plan_layers
    from streamattn_cli.engine.jobs.attend import attend, plan_attend

    return attend, plan_attend
