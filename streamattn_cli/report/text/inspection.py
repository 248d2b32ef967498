"""What `inspect` found, as a short text."""

from __future__ import annotations

from typing import TextIO

from streamattn_cli.report.text.table import Rows, print_rows
from streamattn_cli.units import format_bytes


def render_inspection(report: dict, stream: TextIO) -> None:
    """Write the report to `stream`."""
    print_rows("streamattn inspect", inspection_rows(report), stream)


def inspection_rows(report: dict) -> Rows:
    """The report as (label, text) rows."""
    rows = [("array", _array(entry)) for entry in report["arrays"]]
    rows += [(t["part"], _tensor(t)) for t in report["tensors"]]
    attributes = ", ".join(f"{name} {value}" for name, value in report.get("attributes", {}).items())
    rows.append(("attributes", attributes))
    if logits := report.get("logits"):
        spread = ", ".join(f"{s:.2f}" for s in logits["row_std"])
        rows.append(("logits", f"scale {logits['scale']:.4g}, {'causal' if logits['causal'] else 'full'}: "
                               f"{logits['lowest']:.1f} to {logits['highest']:.1f} in the sample"))  # fmt: skip
        rows.append(("row std", f"{spread} (median by query head); 95% of rows below {logits['row_std_p95']:.2f}"))
    for m in report.get("methods", []):
        rows.append((f"poly {m['degree']}", f"state {format_bytes(m['state_bytes'])}, predicted error "
                                            f"{m['predicted_error']:.2g} (values without structure)"))  # fmt: skip
    if report.get("methods") == []:
        rows.append(("poly", "from degree 2 on larger than the keys and values themselves"))
    rows.append(("advice", report.get("advice", "")))
    rows.append(("command", report.get("command", "")))
    return [(label, text) for label, text in rows if text]


def _array(entry: dict) -> str:
    if "error" in entry:
        return str(entry["error"])
    shape = " x ".join(str(n) for n in entry["shape"]) or "one number"
    return f"{entry['name']}, {shape}, {entry['dtype']}"


def _tensor(t: dict) -> str:
    finite = "all finite" if not t["not_finite"] else f"{t['not_finite']} items of the tensor are not finite"
    return f"{t['rows']} rows, {t['heads']} heads of {t['dim']}, {t['dtype']}, layout {t['layout']}, {finite}"
