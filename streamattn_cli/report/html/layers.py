"""The part of a page that is about the layers of a run: where the error is, and what each of them cost."""

from __future__ import annotations

from math import ceil, inf

from streamattn_cli.report.html.page import figure, folded, heading, interval, listed, pair, paragraph, percent, table
from streamattn_cli.report.html.svg import heat_map
from streamattn_cli.units import format_bytes, format_duration

WORST = 10
MOST_COLUMNS = 64  # of the picture: of more heads, the worst of some side by side
FOLD = 12  # lines of a table above which it is folded


def layers_section(layers: list[dict]) -> list[str]:
    """Error by layer and query head, the worst ten, and time and memory by layer. layers: those of an outcome's dict."""
    if not layers:
        return []
    body = [heading("Layers")]
    failed = [layer for layer in layers if layer.get("failed")]
    if failed:
        body.append(paragraph(f"{len(failed)} of {len(layers)} layers failed; nothing of them was written:", "warn"))
        body.append(listed([f"layer {layer['number']}: {layer['failed']['message']}" for layer in failed]))
    done = [layer for layer in layers if not layer.get("failed")]
    body += _map([layer for layer in done if layer["heads"]])
    rows = [_line(layer) for layer in done]
    names = ["layer", "error", "95% interval", "rows", "time", "peak memory"]
    costs = table("Error, time and memory by layer", names, rows)
    body.append(folded("Error, time and memory by layer, as a table", costs) if len(rows) > FOLD else costs)
    return body


def streams_section(streams: dict | None) -> list[str]:
    """How errors are spread over the heads of all sequences, and the worst ten, where there are several sequences. streams: of
    an outcome's dict."""
    worst = streams["worst"] if streams else []
    if not streams or not any(one["sequence"] is not None for one in worst):
        return []
    low, _, middle, _, high = (percent(error) for error in streams["quantiles"])
    told = (
        f"{streams['measured']} query heads of sequences were audited, of {streams['count']} streams (key heads of sequences"
        f"{' of layers' if worst[0]['layer'] is not None else ''}). Half of them err by less than {middle}, 5% by less than "
        f"{low}, 95% by less than {high}."
    )
    names = [name for name in ("layer", "sequence", "head") if worst[0][name] is not None]
    rows = [
        [*(str(one[name]) for name in names), percent(inf if one["error"] is None else one["error"])] for one in worst
    ]
    words = ["query head" if name == "head" else name for name in names]
    worst_heads = table("The worst heads of all sequences", [*words, "error"], rows, words=3)
    return [heading("Sequences"), paragraph(told), worst_heads]


def _line(layer: dict) -> list[str]:
    error = layer["error"]
    peak = "unknown" if layer["peak"] is None else format_bytes(layer["peak"])
    figures = ["not measured", "none"] if error is None else [percent(error["error"]), interval(error)]
    return [str(layer["number"]), *figures, str(layer["rows"]), format_duration(layer["seconds"]), peak]


def _map(layers: list[dict]) -> list[str]:
    """Error by layer and query head as a picture, and the worst of them."""
    cells = [(error, layer["number"], head) for layer in layers for head, error in enumerate(_errors(layer))]
    if len(cells) < 2 or not any(0 < error < inf for error, _, _ in cells):
        return []
    worst = sorted(cells, key=lambda cell: (-cell[0], cell[1:]))[:WORST]
    heads = max(len(layer["heads"]) for layer in layers)
    side = ceil(heads / MOST_COLUMNS)
    values: list[list[float | None]] = [
        [_shown(_errors(x)[a : a + side]) for a in range(0, heads, side)] for x in layers
    ]
    error, number, head = worst[0]
    svg = heat_map(
        "Error by layer and query head",
        f"{len(layers)} layers of up to {heads} query heads; the worst is layer {number} head {head} with {percent(error)}.",
        values, [str(layer["number"]) for layer in layers], [0, heads - 1], "query head", percent, "layer",
    )  # fmt: skip
    merged = f"; {side} heads side by side are one field, of the worst" if side > 1 else ""
    under = f"darker (on black: lighter) is more; empty: no error, or infinite{merged}"
    image = figure("Error by layer and query head", under, svg)
    rows = [[str(number), str(head), percent(error)] for error, number, head in worst]
    return [pair(image, table("The worst query heads of all layers", ["layer", "query head", "error"], rows, words=2))]


def _errors(layer: dict) -> list[float]:
    """The errors of its query heads; JSON has null for infinity."""
    return [inf if error is None else error for error in layer["heads"]]


def _shown(errors: list[float]) -> float | None:
    """The worst of some finite errors; None where there is none."""
    return max((error for error in errors if error < inf), default=None)
