"""`syne`: parse, call one function, return its exit code. Nothing heavy is imported before a command runs."""

import errno
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import DataError, UserError
from megatron_synE.exit_codes import INTERRUPTED
from megatron_synE.runtime.environment import allow_many_files, hide_cuda
from tools.cli_options import Config, Overrides, escape_what_stdout_lacks, example, log_to_stderr, takes
from tools.data.commands import data_app
from tools.evaluation.commands import eval_app
from tools.mix_commands import mix_app
from tools.planner.options import PlanOptions
from tools.report.commands import register as register_report
from tools.slurm.commands import slurm_app
from tools.surrogate.commands import surrogate_app
from tools.synthesis.commands import synth_app

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATH_IS_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


app = typer.Typer(
    name="syne",
    help="Continual pre-training of Llama-3 on Megatron-Core: from raw pages and an HF checkpoint to an adapted one.",
    epilog=example("syne doctor"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(synth_app, name="synth")
app.add_typer(mix_app, name="mix")
app.add_typer(slurm_app, name="slurm")
app.add_typer(eval_app)
app.add_typer(surrogate_app, name="surrogate")

Processes = Annotated[int | None, typer.Option(min=1, help="Local processes; default: one per GPU, or one.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (docs/exit_codes.md). A user's mistake is one message, no traceback."""
    allow_many_files()  # the processes that a command starts inherit it
    escape_what_stdout_lacks()
    try:
        code = typer.main.get_command(app)(args=arguments, prog_name="syne", standalone_mode=True)
    except SystemExit as finished:
        code = finished.code
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        if (fault := of_the_disk(error)) is None:
            raise
        sys.stderr.write(f"error: {fault}\n")
        return DataError.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        # Python remembers an interrupt that came while it executed a string (an import that makes a dataclass or a
        # named tuple), caught or not, and would die of SIGINT at its end, not with this code; another string clears it.
        exec("")
    return code if isinstance(code, int) else 0


def of_the_disk(error: OSError) -> str | None:
    """What a person can do about it; None for a fault that has another cause, or names no file to mend."""
    if error.errno in DISK_IS_FULL:
        return (
            f"{error.filename or 'a file could not be written'}: {error.strerror}; make room, then run the same "
            "command again: what was finished is kept"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        what = error.filename or "a file could not be opened"
        return (
            f"{what}: {error.strerror} (the limit is {soft}, at most {hard}); raise it with ulimit -n, then "
            "run the same command again: what was finished is kept"
        )
    if error.errno in PATH_IS_REFUSED and error.filename is not None:
        return f"{error.filename}: {error.strerror}; name a path that is there and that you may use, then run it again"
    return None


@app.command(epilog=example("syne doctor"))
def doctor() -> None:
    """What is installed, which implementations will be used and why, and whether a collective works."""
    from tools.doctor import run_doctor

    raise typer.Exit(run_doctor())


@app.command(
    epilog=example(
        "syne plan --config examples/llama3_8b/run_paper.yaml --nodes 16 --card h100 --no-data",
        "init.from=random init.path=null model.preset=llama3_8b",
    )
)
@takes(PlanOptions)
def plan(options: PlanOptions, config: Config, overrides: Overrides = None) -> None:
    """Resolve and check a run without starting it; with --card, what it needs and costs on how many GPUs."""
    from tools.planner.command import parse_nodes, print_planner

    counts, measure = parse_nodes(options.nodes), options.measure
    if measure is not None:
        from tools.planner.measure import write_measurement

        typer.echo(write_measurement(config, overrides or [], options, measure))
    elif options.card is not None or options.shows_all or options.pipeline or len(counts) > 1:
        print_planner(config, overrides or [], options)
    else:
        from tools.plan import print_plan

        print_plan(config, overrides or [], options, nodes=counts[0])


@app.command(epilog=example("syne train --config runs/quickstart/bilingual.yaml"))
def train(config: Config, overrides: Overrides = None, nproc: Processes = None) -> None:
    """Train, or go on where the run folder stands. Under torchrun or srun a rank; alone it starts its own ranks."""
    from megatron_synE.runtime.environment import ranks_from_environment
    from megatron_synE.train import end_as_one_rank
    from megatron_synE.train import main as train_main

    if ranks_from_environment() is not None:
        end_as_one_rank(config, overrides or [])
    raise typer.Exit(train_main(config, overrides or [], nproc))


Dtype = Annotated[Literal["keep", "bf16", "fp32"], typer.Option(help="keep: as stored.")]
HfFolder = Annotated[Path, typer.Option("--hf", help="Folder with config.json and *.safetensors.")]
Checkpoint = Annotated[
    Path, typer.Option("--checkpoint", help="An iter_* folder, or a run: its newest complete checkpoint is taken.")
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Compare every weight, bit for bit, afterwards.")]
Logits = Annotated[
    bool, typer.Option("--logits/--no-logits", help="Also compare logits with transformers, at long positions.")
]


@app.command("import", epilog=example("syne import --hf runs/quickstart/hf_base --out runs/imported"))
def import_command(
    hf: HfFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder that will hold iter_0000000.")],
    dtype: Dtype = "keep",
    verify: Verify = True,
    logits: Logits = True,
) -> None:
    """Hugging Face folder to a weights-only checkpoint, at any size in little memory."""
    hide_cuda()  # logits are of the CPU, where memory was looked at; megatron-core would make its weights on a card
    from tools.checkpoint.importer import import_hf
    from tools.data.progress import live_bytes

    log_to_stderr()
    with live_bytes(f"import {hf}") as progress:
        report = import_hf(hf, out, dtype=dtype, verify=verify, progress=progress)
    typer.echo(report.summary())
    if verify and logits:
        _compare_logits(hf, report.checkpoint, dtype)


@app.command(epilog=example("syne export --checkpoint runs/quickstart/bilingual --out runs/exported"))
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", help="The folder to write; from_pretrained opens it as it is.")],
    dtype: Dtype = "keep",
    verify: Verify = True,
    logits: Logits = True,
    hf_config: Annotated[
        Path | None,
        typer.Option(help="config.json for a Megatron-LM checkpoint, which holds none."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name on its card.")] = None,
) -> None:
    """Checkpoint to a Hugging Face folder with tokenizer, generation config and model card."""
    hide_cuda()
    from megatron_synE.checkpoint.hf_export import write_hf_folder
    from tools.checkpoint.meter import Meter
    from tools.data.progress import live_bytes

    log_to_stderr()
    meter = Meter()
    with live_bytes(f"export {checkpoint}") as progress:
        size_bytes = write_hf_folder(
            checkpoint, out, dtype=dtype, verify=verify, hf_config=hf_config, name=name, progress=progress
        )
    state = "verified bit for bit" if verify else "not verified"
    typer.echo(f"{out}: {state}; {meter.cost(size_bytes=size_bytes).summary()}")
    if verify and logits and hf_config is None:
        _compare_logits(out, checkpoint, dtype)


@app.command(epilog=example("syne average runs/my-run --last 4 --out runs/averaged"))
def average(
    places: Annotated[
        list[Path], typer.Argument(metavar="RUN | FOLDER FOLDER...", help="A run, or iter_* folders of one model.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder that will hold iter_<newest iteration>.")],
    last: Annotated[int | None, typer.Option(min=2, help="Of the run: so many newest checkpoints.")] = None,
) -> None:
    """Mean of several checkpoints' weights, in place of a decay; `syne export` and init.from=checkpoint take it."""
    from tools.checkpoint import averager
    from tools.data.progress import live_bytes

    log_to_stderr()
    folders = averager.find_checkpoints(places, last)
    with live_bytes("average") as progress:
        report = averager.average(folders, out, progress=progress)
    typer.echo(report.summary())


def _compare_logits(hf: Path, checkpoint: Path, dtype: str) -> None:
    """What was just converted, computed by both implementations; a cast changes logits, so only `keep` is compared."""
    if dtype != "keep":
        typer.echo(f"logits not compared (weights were cast to {dtype})")
        return
    from tools.checkpoint.verifier import verify as run_verify

    typer.echo(run_verify(hf, checkpoint, tensors=False).logits_summary())


@app.command(epilog=example("syne verify --hf runs/quickstart/hf_bilingual --checkpoint runs/quickstart/bilingual"))
def verify(hf: HfFolder, checkpoint: Checkpoint, logits: Logits = True) -> None:
    """Compare a Hugging Face folder and a checkpoint: tensors, config fields, logits. Exits 4 if they differ."""
    hide_cuda()
    from tools.checkpoint.verifier import verify as run_verify

    typer.echo(run_verify(hf, checkpoint, logits=logits).summary())


register_report(app)
