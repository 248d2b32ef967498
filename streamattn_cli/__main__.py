"""`python -m streamattn_cli` is the `streamattn` command."""

from streamattn_cli.cli.main import main

main()
