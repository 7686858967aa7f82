"""What the commands of `syne data` are asked for, field by field as on the command line; whether it fits together.

`tools.cli_options.takes` makes a command's options of the annotated fields, so nothing heavy is imported here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from data_mixers.errors import ConfigError
from data_mixers.manifest import Role
from tools.cli_options import MaxBadLines, MaxBadShare, OwnFolder, TextKey, Workers
from tools.data.labels import check_label
from tools.data.readers import MAX_DOCUMENT_BYTES
from tools.data.signals import SIGNALS
from tools.data.slurm_options import Array

Texts = tuple[str, ...]
"""Of an option that may be repeated."""
Documents = Annotated[
    Texts, Option("--input", help="File, folder or glob, may be repeated: .jsonl, .gz, .zst, .parquet.")
]
EosToken = Annotated[str | None, Option(help="Ends each document; default: the tokenizer's own.")]
SourceKey = Annotated[str | None, Option(help="Key to count by; default: the file's folder.")]
TokenizerPath = Annotated[Path, Option(help="HF folder, tokenizer.json, or tokenizer.model.")]
ScoresName = Annotated[str, Option(help="Name of the set of scores to read.")]
TopicsFile = Annotated[Path | None, Option(help="Instead of the project's topics.json.")]
Device = Annotated[Literal["cpu", "cuda"], Option(help="Where the model runs.")]


@dataclass(frozen=True, kw_only=True)
class CleanOptions:
    inputs: Documents
    out: OwnFolder
    rules: Annotated[Path | None, Option(help="Rules; default: tools/data/clean_rules.yaml.")] = None
    languages: Annotated[Texts, Option("--language", help="Keep this language (zh, en, ...), may be repeated.")] = ()
    """ISO 639 codes; empty: languages are not looked at."""
    text_key: TextKey = "text"
    source_key: SourceKey = None
    near_duplicates: Annotated[bool, Option(help="MinHash; exact duplicates always go.")] = True
    report_only: Annotated[bool, Option("--report-only", help="Count, write no documents.")] = False
    workers: Workers = 1
    max_bad_share: MaxBadShare = 0.01
    max_bad_lines: MaxBadLines = 10
    array: Array = None


@dataclass(frozen=True, kw_only=True)
class DecontaminateOptions:
    inputs: Documents
    benchmarks: Annotated[
        Texts, Option(help="File, folder or glob, may be repeated: .jsonl, .json, .csv, .gz, .zst, .parquet.")
    ]
    out: OwnFolder
    remove: Annotated[bool, Option("--remove", help="Write the documents, the contaminated apart.")] = False
    ngram: Annotated[int, Option(min=2, help="Of words, or characters of Chinese.")] = 13
    """13 words are GPT-3's (arXiv 2005.14165, appendix C)."""
    max_share: Annotated[
        float, Option(min=0.0, max=1.0, help="Contaminated above this share of its n-grams; 0: any one.")
    ] = 0.0
    benchmark_keys: Annotated[
        Texts, Option("--benchmark-key", help="Key of the benchmarks' texts, may be repeated; default: known ones.")
    ] = ()
    text_key: TextKey = "text"
    source_key: SourceKey = None
    workers: Workers = 1
    max_bad_share: MaxBadShare = 0.01
    max_bad_lines: MaxBadLines = 10
    array: Array = None


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    name: Annotated[str, Argument(help="llama-3-syne, dolma, c4 or c4-multilingual.")]
    out: Annotated[Path, Option(help="Folder; sources.json in it tells where every file is from.")]
    slices: Annotated[Texts, Option("--slice", help="Bucket, version or language, may be repeated.")] = ()
    match: Annotated[str, Option(help="Only files whose path fits this glob.")] = "*"
    max_files: Annotated[int | None, Option(min=1, help="The first so many.")] = None
    revision: Annotated[str, Option(help="Of the repository.")] = "main"
    endpoint: Annotated[str | None, Option(help="A mirror of the hub; default: HF_ENDPOINT, else the hub.")] = None
    offline: Annotated[bool, Option("--offline", help="Only look whether the files are there.")] = False
    connections: Annotated[int, Option(min=1, max=8, help="Files at a time.")] = 2
    pause_seconds: float = 1.0
    """As in download.Web."""


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    inputs: Documents
    tokenizer: TokenizerPath
    out: Annotated[Path, Option(help="Folder; other sources in it stay.")]
    text_key: TextKey = "text"
    language: Annotated[str, Option(help="zh, en, ...; und: undetermined.")] = "und"
    source: Annotated[str, Option(help="web, book, code, ...")] = "web"
    topic: Annotated[str | None, Option(help="One topic for all documents.")] = None
    """Neither this nor topic_key: "all"."""
    topic_key: Annotated[str | None, Option(help="Key of each document's topic.")] = None
    workers: Workers = 1
    holdout: int | Literal["auto"] = 0
    """Documents per topic kept from training, those with the smallest content hashes; auto: see holdout.choose."""
    holdout_sd: float | None = None
    """What the size of the holdout and its error are worked out with: see holdout.measured_sd; None: SD_OF_DOCUMENT."""
    role: Annotated[Role, Option(help="validation: everything of this call is held out.")] = "train"
    seed: Annotated[int, Option(min=0, help="Of the order of documents.")] = 1234
    eos_token: EosToken = None
    keep_documents_whole: Annotated[
        bool, Option("--keep-documents-whole", help="Pack documents whole into windows of --seq-length tokens.")
    ] = False
    seq_length: Annotated[int | None, Option(help="Of the runs that will read them: training.seq_length.")] = None
    max_document_bytes: Annotated[int, Option(min=1, help="Longer texts are bad lines.")] = MAX_DOCUMENT_BYTES
    max_bad_share: MaxBadShare = 0.01
    max_bad_lines: MaxBadLines = 10
    array: Array = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    data: Annotated[Path, Option(help="Folder of token files with manifest.json.")]
    checkpoint: Annotated[Path | None, Option(help="An iter_* folder, or a run: its newest.")] = None
    hf: Annotated[Path | None, Option(help="Folder with config.json and weights.")] = None
    """Neither: signals alone."""
    tokenizer: Annotated[Path | None, Option(help="Gives the cheap signals; left out, they are null.")] = None
    sources: Annotated[str, Option(help="Glob over source names.")] = "*"
    name: Annotated[str, Option(help="Of this set of scores, beside a first one.")] = "default"
    seq_length: Annotated[int | None, Option(min=1, help="Default: the model's context, at most 4096.")] = None
    overlap: Annotated[int | None, Option(min=0, help="Context of a long document's later windows; default: 1/16.")] = (
        None
    )
    micro_batch_size: Annotated[int, Option(min=1, help="seq_lengths of tokens in a forward pass.")] = 1
    workers: Annotated[
        int, Option("--workers", "--nproc", min=1, help="Processes, each with the whole model: one per GPU.")
    ] = 1
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Option(help="auto: bf16 where the hardware multiplies it.")
    ] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda"], Option(help="auto: a GPU where there is one.")] = "auto"
    array: Array = None


@dataclass(frozen=True, kw_only=True)
class SortOptions:
    data: Annotated[Path, Option(help="Folder of token files with scores.")]
    out: Annotated[Path, Option(help="The folder to write: sorted sources, and all others unchanged.")]
    by: Annotated[str, Option(help=f"nll, {', '.join(SIGNALS)}, or difference:A-B of two names.")] = "nll"
    name: ScoresName = "default"
    """difference:A-B names its own two."""
    buckets: Annotated[int, Option(min=1, help="Per topic, with equally many tokens.")] = 10
    """Ours: the recipe gives no number; a tenth of a topic is as fine as its PPL can be told apart."""
    sources: Annotated[str, Option(help="Glob over the names of training sources to sort.")] = "*"
    descending: Annotated[bool, Option("--descending", help="Highest key first.")] = False
    drop_tails: tuple[float, float] = (0.0, 0.0)
    keep_share: Annotated[float, Option(min=0.0, max=1.0, help="Of each topic's documents, evenly over the order.")] = (
        1.0
    )
    workers: Workers = 1
    array: Array = None


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    data: Annotated[Path | None, Option(help="Folder of token files.")] = None
    tokenizer: Annotated[Path | None, Option(help="HF folder, tokenizer.json, or tokenizer.model.")] = None
    inputs: Annotated[Texts, Option("--input", help="Instead of --data: files of documents, may be repeated.")] = ()
    source: Annotated[str, Option(help="Glob over sources: zh/web/*.")] = "*"
    topic: Annotated[str | None, Option(help="Only this topic.")] = None
    percentile: Annotated[float | None, Option(min=0.0, max=100.0, help="Of PPL, in each source.")] = None
    num: Annotated[int, Option(min=1, help="Documents per source.")] = 5
    seed: Annotated[int, Option(min=0, help="Of the choice.")] = 1234
    scores: ScoresName = "default"
    text_key: Annotated[str, Option(help="Key of the text in --input.")] = "text"
    max_characters: Annotated[int, Option(min=1, help="Shown of each text.")] = 1000


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    inputs: Annotated[Texts, Option("--input", help="File or glob of documents, may be repeated.")]
    url: Annotated[str, Option(help="OpenAI-compatible server, up to and with /v1.")]
    models: Annotated[Texts, Option("--model", help="Its name on the server; two give an agreement.")]
    language: Annotated[str, Option(help="Of the documents: zh, en.")]
    out: Annotated[Path, Option(help="Folder for answers, labelled documents and the agreement report.")]
    passes: Annotated[int, Option(min=1, help="Answers of each model to each document.")] = 1
    gold_key: Annotated[str | None, Option(help="Key of labels to compare with.")] = None
    topics: TopicsFile = None
    prompt: Annotated[Path | None, Option(help="Instead of the project's prompt.json.")] = None
    text_key: TextKey = "text"
    parallel: Annotated[int, Option(min=1, help="Questions at a time.")] = 8
    timeout_seconds: Annotated[float, Option(min=0.1, help="Of one answer.")] = 60.0


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    inputs: Annotated[Texts, Option("--input", help="File or glob of documents, may be repeated.")]
    classifier: Annotated[Path, Option(help="Folder of train-classifier.")]
    out: Annotated[Path, Option(help="Folder for the documents with their topic.")]
    text_key: TextKey = "text"
    threshold: Annotated[
        float | None, Option(min=0.0, max=1.0, help="Below it: others; default: the classifier's.")
    ] = None
    device: Device = "cpu"
    workers: Workers = 1
    max_bad_share: MaxBadShare = 0.01
    max_bad_lines: MaxBadLines = 10
    array: Array = None


def check(options: PreprocessOptions) -> None:
    if options.topic is not None and options.topic_key is not None:
        raise ConfigError("--topic and --topic-key exclude each other: a document has one topic")
    check_label(options.language, option="--language")
    check_label(options.source, option="--source")
    if options.topic is not None:
        check_label(options.topic, option="--topic")
    if options.holdout and options.role == "validation":
        raise ConfigError("--holdout has no meaning with --role validation, which holds out everything")
    if options.keep_documents_whole and options.role == "validation":
        raise ConfigError("--keep-documents-whole is for training data; validation packs documents by itself")
    if options.keep_documents_whole != (options.seq_length is not None):
        raise ConfigError("--keep-documents-whole and --seq-length go together: the windows are training.seq_length")
    if options.seq_length is not None and options.seq_length < 2:
        raise ConfigError(f"--seq-length {options.seq_length} must be at least 2: a token and EOS")
