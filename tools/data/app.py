"""The group `syne data`; its commands are in commands*.py."""

import typer

from tools.cli_options import example

data_app = typer.Typer(
    help="Turn raw text into tokenised, described data.",
    epilog=example("syne data preprocess --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
