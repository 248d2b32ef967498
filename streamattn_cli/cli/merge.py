"""`streamattn merge`: one sketch of several."""

from __future__ import annotations

from typing import Annotated

import typer

from streamattn_cli.cli.options import Force, Json, option


def merge(
    sketches: Annotated[list[str], typer.Argument(metavar="SKETCH...", help="Sketches of different rows.")],
    output: Annotated[str, option("-o", "--output", help="The merged sketch, FILE.sattn.")],
    pool_queries: Annotated[
        bool, option("--pool-queries", help="Merge even sketches that were fitted to different queries (nystrom).")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Merge sketches of different rows into one, as if one pass had absorbed them all.

    streamattn merge shard0.sattn shard1.sattn -o all.sattn
    """
    from streamattn_cli.cli.words import show_json
    from streamattn_cli.engine.jobs.merge import merge as run

    result = run(sketches, output, pool_queries, force)
    if json:
        show_json(result)
    else:
        print(f"{output}: {result['rows']} rows of {result['heads']} key heads, from {result['sketches']} sketches")
