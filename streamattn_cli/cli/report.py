"""`streamattn report`: one page from the JSON of a run, a comparison or a reading."""

from __future__ import annotations

from typing import Annotated

import typer

from streamattn_cli.cli.options import Force, option


def report(
    document: Annotated[
        str,
        typer.Argument(
            metavar="JSON",
            help="What attend, compare or perplexity wrote with --json or --log-json; - for standard input.",
        ),
    ] = "-",
    output: Annotated[str, option("-o", "--output", help="The page, FILE.html, or - for standard output.")] = "-",
    force: Force = False,
) -> None:
    """One self-contained HTML page from the JSON of attend, compare or perplexity: error, memory and speed in pictures.

    streamattn report outcome.json -o outcome.html
    """
    import sys

    from streamattn_cli.cli.streams import printing
    from streamattn_cli.errors import UsageError
    from streamattn_cli.report.document import read_document, save_page
    from streamattn_cli.report.html.compare import comparison_page
    from streamattn_cli.report.html.outcome import outcome_page
    from streamattn_cli.report.html.perplexity import perplexity_page

    if document == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal: give the file that --json was written to, or pipe it in")
    found = read_document(document)
    page = {"comparison": comparison_page, "perplexity": perplexity_page, "outcome": outcome_page}[found["type"]](found)
    if output == "-":
        with printing():
            print(page, end="")
    else:
        save_page(page, output, force)
