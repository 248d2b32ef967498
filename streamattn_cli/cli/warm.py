"""`streamattn warm`: compile all kernels beforehand."""

from __future__ import annotations


def warm() -> None:
    """Compile the kernels of all methods now, for an image or the nodes of a cluster, so that no run has to.

    streamattn warm
    """
    from streamattn_cli.cli.streams import printing
    from streamattn_cli.cli.words import watching
    from streamattn_cli.engine.jobs.warming import warm_all

    with watching({}) as (listener, interrupts):
        found = warm_all(listener, interrupts)
    with printing():
        print(f"{found['kernels']} kernels compiled, for {', '.join(found['methods'])}")
