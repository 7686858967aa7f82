"""`syne eval` and `syne compare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr

eval_app = typer.Typer(rich_markup_mode=None)

Data = Annotated[
    Path | None,
    typer.Option(help="Folder of data sets, as DIR/<owner>/<name>/; packages are kept there.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of results; default: <run>/eval. An HF folder needs it.", show_default=False)
]


@eval_app.command("eval", epilog=example("syne eval runs/quickstart/bilingual --suite probe --data build/eval_data"))
def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="An HF folder, a run, or an iter_* folder.", show_default=False)
    ] = None,
    suite: Annotated[str, typer.Option(help="paper, retention, probe, or a YAML file.")] = "probe",
    out: Out = None,
    data: Data = None,
    checkpoints: Annotated[Literal["newest", "all"], typer.Option(help="Which of a run.")] = "newest",
    only: Annotated[
        list[str] | None, typer.Option(help="A benchmark by name; may be repeated. Default: all.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first items of each task.", show_default=False)
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run what the model writes, in the sandbox: HumanEval, MBPP.")
    ] = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out what has no data.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no network.")] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print the suite and where its data lies, and stop.")
    ] = False,
    backend: Annotated[Literal["hf", "vllm"], typer.Option(help="Which program computes.")] = "hf",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU if there is one.")] = "auto",
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="auto: as stored.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
) -> None:
    """Evaluate a model on a suite, item by item; done tasks are kept, so the same command goes on."""
    from tools.evaluation.data_files import DataOptions
    from tools.evaluation.evaluate import EvalOptions
    from tools.evaluation.evaluate import evaluate as run_evaluation
    from tools.evaluation.tables import list_suite, results_table

    log_to_stderr()
    if model is None and not list_only:
        raise ConfigError("which model? give an HF folder, a run, or an iter_* folder (or --list)")
    options = EvalOptions(
        model=model or Path(), suite=suite, out=out, checkpoints=checkpoints,
        data=DataOptions(folder=data, offline=offline), only=tuple(only or ()), limit=limit, run_code=run_code,
        skip_missing=skip_missing, backend=backend, device=device, dtype=dtype, batch_size=batch_size,
    )  # fmt: skip
    if list_only:
        typer.echo(list_suite(options))
        return
    for results in run_evaluation(options):
        typer.echo(results_table(results))


@eval_app.command(
    "compare",
    epilog=example("syne compare runs/base/eval/paper/hf_base runs/a/eval/paper/iter_0023842 --published"),
)
def compare(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of results; the first is the base of the others.", show_default=False),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show the paper's table too; alone: the paper's table by itself.")
    ] = False,
    output_format: Annotated[Literal["text", "json"], typer.Option("--format")] = "text",
    out: Annotated[
        Path | None, typer.Option(help="Also write the comparison as JSON there.", show_default=False)
    ] = None,
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
