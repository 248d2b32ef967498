"""Every option is described once: completion, requests, and what a resumed run must agree with come from that."""

import dataclasses

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from streamattn_cli.cli.arguments import Shown
from streamattn_cli.cli.main import app
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.requests import (
    AttendRequest,
    CompareRequest,
    PlanRequest,
    QueryRequest,
    SketchRequest,
)
from streamattn_cli.engine.saving.resume import facts_of
from streamattn_cli.errors import UsageError
from streamattn_cli.options import options_of
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec

POLY = {"method": "poly", "degree": 2}
PHI = POLY | {"sketches": "phi", "top_k": 4, "m2": 512}
TOP = POLY | {"top_k": 4}
SMALL = {"method": "nystrom", "resident_rows": 64}
WINDOW = {"method": "window", "resident_rows": 64, "causal": True}
EVICT = {"method": "evict", "resident_rows": 64, "causal": True}
BATCH = SMALL | {"lengths": "300,300"}
# For every option: settings where it counts, and another value of it.
OTHER = {
    "causal": (SMALL, True), "local": (SMALL | {"causal": True}, "9"), "sink_logit": (SMALL, "0.5,1"), "softcap": (WINDOW, "50"), "logit_bias": (WINDOW, "slope"), "first_query": (SMALL | {"causal": True, "q_rows": (0, 50)}, "7"), "scale": (SMALL, "d"), "method": ({"resident_rows": 64}, "window"),
    "resident_rows": (SMALL, 96), "effort": (SMALL | {"resident_rows": 400}, "best"), "query_model": (SMALL, "q.npy"),
    "rope": (SMALL | {"causal": True}, "1e4:interleaved"),
    "bits": (EVICT, 6), "score": (EVICT, "last"),
    "sinks": (SMALL, 2), "window": (SMALL, 16), "buffer": (SMALL, 8), "atoms": (SMALL, 24),
    "degree": (POLY, 3), "polynomial": (POLY, "taylor"), "beta": (POLY, 2.5), "max_error": (POLY, 0.5),
    "eps": (POLY, 0.1), "sketches": (PHI, "paper"), "order": (PHI, "kvq"), "m1": (PHI | {"sketches": "paper"}, 128),
    "m2": (PHI, 1024), "decoder": (PHI | {"m2": None}, "peel"), "top_k": (TOP, 5), "per_column": (PHI, True),
    "deviation": (TOP, True), "memory": (SMALL, 1 << 30), "seed": (SMALL, 7), "threads": (SMALL, 1),
    "block_rows": (SMALL, 64), "nan_policy": (SMALL, "drop"), "audit": (SMALL, 8), "force": (SMALL, True), "out_dtype": (SMALL, "f2"),
    "repair": (SMALL, "5%"), "doubt": (SMALL, "d.npy"),
    "checkpoint_every": (SMALL, "5s"), "resume": (SMALL, True), "skip_rows": (SMALL, 0), "fingerprint": (SMALL, True),
    "keep_going": (SMALL, True), "memory_per_layer": ({"method": "nystrom"}, 4096), "share": (SMALL, "adaptive"), "checkpoint": (SMALL, "c.sattn"), "shards": (SMALL, 2), "engine": (SMALL, "processes"), "select": (SMALL, (0,)), "missing": (SMALL, "zeros"),
    "config": (SMALL, "config.json"), "starts": (SMALL, "0,100,200"), "lengths": (BATCH, "150,90"),
    "q_starts": (SMALL | {"starts": "0,100,200"}, "0,50,90"), "q_lengths": (BATCH, "150,90"),
}  # fmt: skip
OF_INPUT = {name for name, _, described in options_of(InputSpec) if described.decides}
OF_SKETCH = {"shards"}  # which are not resumed
REQUESTS = {
    "attend": AttendRequest, "sketch": SketchRequest, "query": QueryRequest, "compare": CompareRequest, "plan": PlanRequest,
}  # fmt: skip
# What a command line says that its request has in another form.
ASKED_APART = {"attend": {"dry_run"}, "sketch": {"blind"}, "compare": {"resident_rows", "resident"}}


def _facts(folder, **words):
    batch = "batch" if "lengths" in words else ""
    words |= {"config": str(folder / words["config"])} if "config" in words else {}
    files = {name: str(folder / f"{batch}{name}.npy") for name in "qkv"}
    layout = "BTHD" if batch else "THD"
    given = OF_INPUT | {"q_rows"}
    spec = InputSpec(**files, layout=layout, **{name: words.pop(name) for name in given if name in words})
    with open_inputs(spec, apart=True) as inputs:
        plan = make_plan(resolve(AttendRequest(spec, str(folder / "out.npy"), **words), inputs))
    return facts_of(plan.problem, plan.audit_rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("options")
    (path / "config.json").write_text(
        '{"model_type": "mistral", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}'
    )
    generator = np.random.default_rng(0)
    for name in "qkv":
        rows = generator.standard_normal((600, 2, 4)).astype("f4")
        np.save(path / f"{name}.npy", rows)
        np.save(path / f"batch{name}.npy", rows.reshape(2, 300, 2, 4))
    return path


def _described():
    spec = [entry for entry in options_of(InputSpec) if entry[2].decides]
    every = [entry for request in REQUESTS.values() for entry in options_of(request)]
    return {name: described for name, _, described in [*every, *spec]}


def test_every_option_has_another_value_to_try():
    assert set(_described()) == set(OTHER)
    assert {f.name for f in dataclasses.fields(AttendRequest)} == set(OTHER) - OF_INPUT - OF_SKETCH | {
        "inputs",
        "output",
    }


@pytest.mark.parametrize("command", REQUESTS)
def test_a_request_has_the_options_of_its_command_and_no_others(command):
    typed = {p.name for p in typer.main.get_command(app).commands[command].params}
    mine = {f.name for f in dataclasses.fields(REQUESTS[command])} - {"inputs", "by_bytes", "budgets"}
    beside = {f.name for f in dataclasses.fields(InputSpec)} | {f.name for f in dataclasses.fields(Shown)}
    assert mine <= typed
    assert typed - mine - beside - {"help"} == ASKED_APART.get(command, set())


@pytest.mark.parametrize("name", sorted(set(OTHER) - OF_SKETCH))
def test_a_run_is_resumed_with_other_values_only_of_options_that_decide_nothing(folder, name):
    settings, value = OTHER[name]
    before, after = _facts(folder, **settings), _facts(folder, **settings | {name: value})
    assert (before != after) == _described()[name].decides


@pytest.mark.parametrize("name", sorted(name for name, option in _described().items() if option.choices))
def test_words_that_are_no_choice_are_refused_and_choices_are_completed(name):
    option = _described()[name]
    if not option.open:
        with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
            (InputSpec if name in OF_INPUT else AttendRequest)(**{name: "no such word"})
    command = "sketch" if name == "engine" else "attend"
    words = f"streamattn {command} --{name.replace('_', '-')} "
    environment = {"_STREAMATTN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    told = CliRunner().invoke(app, env=environment, prog_name="streamattn").output
    assert set(option.choices) <= set(told.split())
