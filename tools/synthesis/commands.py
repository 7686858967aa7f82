"""`syne synth`: the commands. Nothing heavy is imported before a command runs."""

import json
from typing import Annotated

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr, takes
from tools.synthesis.llama_server import serve
from tools.synthesis.options import (
    AuditOptions,
    CheckOptions,
    CorruptOptions,
    FormatOptions,
    GenerateOptions,
    Out,
    Seed,
    SeedOptions,
)
from tools.synthesis.verifiable.topic import Kind

synth_app = typer.Typer(
    help="Make, check and study synthetic question-answer pairs.",
    epilog=example("syne synth verifiable --kind algebra --language zh --num 1000 --out runs/algebra.jsonl.zst"),
    no_args_is_help=True,
    rich_markup_mode=None,
)

synth_app.command(epilog=example("syne synth serve models/SmolLM2-135M-Instruct.Q4_1.gguf --port 8000"))(serve)


@synth_app.command(epilog=example("syne synth seeds --input 'cleaned/*.zst' --quota 2000 --out runs/seeds.jsonl.zst"))
@takes(SeedOptions)
def seeds(options: SeedOptions) -> None:
    """Self-contained snippets of pages, by discipline: what `generate` asks a model about."""
    from tools.synthesis.seeds import write_seeds

    log_to_stderr()
    typer.echo(json.dumps(write_seeds(options), ensure_ascii=False, indent=1))


@synth_app.command(
    epilog=example(
        "syne synth generate --seeds runs/seeds.jsonl.zst --model mistralai/Mistral-7B-Instruct-v0.3",
        "--endpoint http://127.0.0.1:8000/v1 --out runs/qa",
    )
)
@takes(GenerateOptions)
def generate(options: GenerateOptions) -> None:
    """A model's question and worked answer for every seed and sample, exactly one of each."""
    from tools.synthesis.generate import generate as run

    log_to_stderr()
    typer.echo(json.dumps(run(options), ensure_ascii=False, indent=1))


@synth_app.command(
    epilog=example("syne synth verifiable --kind chemistry --language en --num 1000 --out runs/chemistry.jsonl.zst")
)
def verifiable(
    kind: Annotated[Kind, typer.Option(help="chemistry needs: pip install --no-deps mendeleev")],
    num: Annotated[int, typer.Option(min=1, help="Pairs; the first N are the same for every number.")],
    out: Out,
    language: Annotated[str, typer.Option(help="zh or en.")] = "en",
    seed: Seed = 1234,
) -> None:
    """Pairs that no language model made, exact by construction, no problem twice."""
    from tools.synthesis.verifiable.stream import write_items

    log_to_stderr()
    typer.echo(write_items(kind, language, num=num, seed=seed, out=out))


@synth_app.command(
    epilog=example("syne synth corrupt --input runs/algebra.jsonl.zst --share 0.3 --out runs/algebra_30.jsonl.zst")
)
@takes(CorruptOptions)
def corrupt(options: CorruptOptions) -> None:
    """For studies: the same pairs with a share made wrong, every change written down."""
    from tools.synthesis.corrupt import corrupt_file

    log_to_stderr()
    typer.echo(corrupt_file(options))


@synth_app.command(
    epilog=example("syne synth check --input runs/algebra.jsonl.zst --out runs/algebra_checked --workers 2")
)
@takes(CheckOptions)
def check(options: CheckOptions) -> None:
    """Drop pairs that are unfit to train on; each is kept with its reason."""
    from tools.data.selection import table
    from tools.synthesis.check import REPORT_MD, summary
    from tools.synthesis.check import check as run_check

    log_to_stderr()
    report = run_check(options)
    typer.echo(f"{table(report)}\n{summary(report)}; examples: {options.out / REPORT_MD}")


@synth_app.command(
    epilog=example(
        "syne synth audit --input 'runs/algebra_checked/*.jsonl.zst' --calibration runs/algebra_30.jsonl.zst",
        "--url http://127.0.0.1:8000/v1 --model judge --out runs/algebra_audit",
    )
)
@takes(AuditOptions)
def audit(options: AuditOptions) -> None:
    """Estimate how many pairs are wrong, per discipline, with an interval; always writes a sheet for a person."""
    from tools.synthesis.audit import audit as run_audit
    from tools.synthesis.audit import summary

    log_to_stderr()
    typer.echo(summary(run_audit(options)))


@synth_app.command(
    "format",
    epilog=example(
        "syne synth format --input 'runs/algebra_checked/*.jsonl.zst' --audit runs/algebra_audit/audit.json",
        "--tokenizer models/llama3 --out runs/algebra_text",
    ),
)
@takes(FormatOptions)
def format_command(
    options: FormatOptions,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do without: nobody knows how wrong they are.")] = False,
) -> None:
    """Write audited pairs as plain text for `syne data preprocess --keep-documents-whole`."""
    from tools.synthesis.format import TEXT, format_pairs, table

    log_to_stderr()
    if (options.audit is None) != no_audit:
        raise ConfigError("name --audit audit.json (syne synth audit makes it), or say --no-audit; not both")
    typer.echo(f"{table(format_pairs(options))}\n{options.out / TEXT}")
