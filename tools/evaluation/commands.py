"""`syne eval` and `syne compare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr, takes
from tools.evaluation.options import EvalOptions

eval_app = typer.Typer(rich_markup_mode=None)


@eval_app.command("eval", epilog=example("syne eval runs/quickstart/bilingual --suite probe --data build/eval_data"))
@takes(EvalOptions)
def evaluate(options: EvalOptions) -> None:
    """Evaluate a model on a suite, item by item; done tasks are kept, so the same command goes on."""
    from tools.evaluation.evaluate import evaluate as run_evaluation
    from tools.evaluation.tables import list_suite, results_table

    log_to_stderr()
    if options.list_only:
        typer.echo(list_suite(options))
        return
    for results in run_evaluation(options):
        typer.echo(results_table(results))


@eval_app.command(
    "compare", epilog=example("syne compare runs/base/eval/paper/hf_base runs/a/eval/paper/iter_0023842 --published")
)
def compare(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of results; the first is the base of the others."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show the paper's table too; alone: the paper's table by itself.")
    ] = False,
    output_format: Annotated[Literal["text", "json"], typer.Option("--format")] = "text",
    out: Annotated[Path | None, typer.Option(help="Also write the comparison as JSON there.")] = None,
) -> None:
    """What differs between models measured alike, by how much, and what of it is inside noise."""
    import json

    from data_mixers.atomic import write_atomic
    from tools.evaluation.compare import compare_published, compare_results
    from tools.evaluation.tables import comparison_json, comparison_table

    log_to_stderr()
    if results:
        comparison = compare_results(results, shows_published=published)
    elif published:
        comparison = compare_published()
    else:
        raise ConfigError("nothing to compare: give folders that `syne eval` wrote, or --published")
    content = json.dumps(comparison_json(comparison), ensure_ascii=False, indent=1)
    if out is not None:
        write_atomic(out, content.encode())
    typer.echo(content if output_format == "json" else comparison_table(comparison))
