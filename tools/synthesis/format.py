"""`syne synth format`: audited pairs as plain text for `syne data preprocess`, in several layouts, counted in tokens.

<out>/qa.jsonl.zst   {"id", "text", "topic": the discipline, "language", "layout", "generator"}
<out>/report.json    counts per discipline, layouts, the audit that let the pairs pass
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.file_version import check_version
from data_mixers.permutation import keyed_hash
from tools.columns import aligned
from tools.data.documents import DocumentWriter, TaskDocuments
from tools.data.download import sha256_of
from tools.data.progress import LiveProgress
from tools.data.readers import InputTask, find_inputs, plan_tasks
from tools.data.stage import only_one
from tools.data.yaml_file import read_yaml
from tools.synthesis.audit import SCHEMA_VERSION
from tools.synthesis.options import LAYOUTS, FormatOptions
from tools.synthesis.output import kept_inputs
from tools.synthesis.record import QaRecord, filled, read_records

TEXT, REPORT = "qa.jsonl.zst", "report.json"
BATCH = 256  # texts tokenised at once
PAGE_SEPARATOR = "page_separator"

Layout = dict[str, str]
"""language -> template, and the separator after a source page."""


def format_pairs(options: FormatOptions) -> dict[str, Any]:
    """Write the text and the report. Deterministic.

    Errors: ConfigError if the audit is of other files or finds too many wrong, or for a layout that is not there;
    DataError for damaged input. Memory: the source pages that pairs ask for, if they are mixed in.
    """
    from megatron_synE.data.tokenizers import load_tokenizer

    paths = kept_inputs(options.inputs)
    hashes = list(map(sha256_of, paths))
    audited = _audited(options, sorted(hashes))
    layouts = _layouts(options)
    if bool(options.pages) != (options.page_share > 0):
        raise ConfigError("--pages and --page-share go together")
    tokenizer = load_tokenizer(options.tokenizer)
    tasks = plan_tasks(paths)
    with only_one(options.out):
        pages = _pages(options, tasks)
        counts: Counter[tuple[str, str]] = Counter()
        used: Counter[str] = Counter()
        with DocumentWriter(options.out / TEXT) as file:
            rows = _written(options, tasks, layouts, pages)
            while batch := list(islice(rows, BATCH)):
                tokens = tokenizer.encode_ordinary_batch([row["text"] for row in batch])
                for row, ids in zip(batch, tokens, strict=True):
                    with_page = row.pop("with_page")
                    file.write(row)
                    used[row["layout"]] += 1
                    for name in (row["topic"], "all"):
                        counts[name, "pairs"] += 1
                        counts[name, "with_page"] += with_page
                        counts[name, "bytes"] += len(row["text"].encode())
                        counts[name, "tokens"] += len(ids)
        disciplines = sorted({name for name, _ in counts} - {"all"})
        report = {
            "command": "synth format",
            "inputs": [{"file": str(path), "sha256": digest} for path, digest in zip(paths, hashes, strict=True)],
            "audit": audited,
            "tokenizer": tokenizer.digest,
            "layouts": dict(sorted(used.items())),
            "disciplines": {
                name: {key: counts[name, key] for key in ("pairs", "with_page", "bytes", "tokens")}
                for name in [*disciplines, "all"]
            },
        }
        write_atomic(options.out / REPORT, json.dumps(report, ensure_ascii=False, indent=1).encode())
    return report


def table(report: dict[str, Any]) -> str:
    """Pairs and tokens per discipline."""
    rows = [["discipline", "pairs", "with page", "tokens"]]
    for name, found in report["disciplines"].items():
        rows.append([name, *(f"{found[key]:,}" for key in ("pairs", "with_page", "tokens"))])
    return aligned(rows, num_left=1)


def _audited(options: FormatOptions, inputs: list[str]) -> dict[str, Any] | None:
    """What the audit says of the pairs in files of these hashes, if they may be used.

    Judged by the upper end of the interval over all pairs, so that a small sample does not let them pass, and by the
    estimate of every discipline, so that a large one does not hide a bad one.
    """
    if options.audit is None:
        return None
    if not options.audit.exists():
        raise ConfigError(f"--audit {options.audit}: there is no such file; syne synth audit makes it")
    try:
        content = json.loads(options.audit.read_text(encoding="utf-8"))
        cure = "audit again with `syne synth audit`"
        check_version(content, understood=SCHEMA_VERSION, file=options.audit, cure=cure, fault=ConfigError, absent=1)
        whole, disciplines, audited = content["wrong_rate"], content["disciplines"], content["inputs"]
        value, high = float(whole["value"]), float(whole["high"])
        rates = {name: float(row["wrong_rate"]["value"]) for name, row in disciplines.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--audit {options.audit} is no audit.json of syne synth audit ({error!r})") from error
    if inputs != audited:
        raise ConfigError(f"--audit {options.audit} is of other files than --input; audit these, or name those")
    too_wrong = [f"{name} {rate:.1%}" for name, rate in rates.items() if not rate <= options.most_wrong]
    if not high <= options.most_wrong:  # so that a NaN is too wrong, too
        too_wrong.append(f"all {value:.1%}, perhaps {high:.1%} (upper end of 95 %)")
    if too_wrong:
        raise ConfigError(
            f"too many pairs are wrong, more than {options.most_wrong:.0%}: {'; '.join(too_wrong)}. Check them more "
            "strictly, leave the discipline out, audit a larger sample, or take them all the same with "
            "--accept-wrong-rate"
        )
    return {"wrong_rate": whole, "judge": content.get("judge"), "most_wrong": options.most_wrong}


def _layouts(options: FormatOptions) -> dict[str, Layout]:
    known: dict[str, Layout] = read_yaml(LAYOUTS, dict[str, dict[str, str]])
    if unknown := [name for name in options.layouts if name not in known]:
        raise ConfigError(f"--layout {unknown[0]} is not in {LAYOUTS}; there are {', '.join(known)}")
    return {name: known[name] for name in options.layouts or known}


def _pages(options: FormatOptions, tasks: Sequence[InputTask]) -> dict[str, str]:
    """seed_id -> text, of the pages that pairs were made of."""
    if not options.pages:
        return {}
    wanted = {pair.seed_id for pair in read_records(tasks) if _takes_page(options, pair)}
    found = {
        document.id: document.text
        for task in plan_tasks(find_inputs(options.pages, option="--pages"))
        for document in TaskDocuments(task, text_key=options.page_key)
        if document.id in wanted
    }
    if not found:
        raise DataError("no pair was made of any of --pages: no id of theirs is the seed_id of a pair")
    return found


def _takes_page(options: FormatOptions, pair: QaRecord) -> bool:
    return pair.seed_id is not None and keyed_hash("page", options.seed, pair.id) < options.page_share * 2**64


def _written(
    options: FormatOptions, tasks: Sequence[InputTask], layouts: dict[str, Layout], pages: dict[str, str]
) -> Iterator[dict[str, Any]]:
    names = list(layouts)
    with LiveProgress("format", total=sum(task.size_bytes for task in tasks)) as progress:
        for pair in read_records(tasks, progress.advance):
            name = names[keyed_hash("layout", options.seed, pair.id) % len(names)]
            layout = layouts[name]
            template = layout.get(pair.language, layout["en"])
            text = filled(template, question=pair.question.strip(), answer=pair.answer.strip())
            page = pages.get(pair.seed_id or "") if _takes_page(options, pair) else None
            if page is not None:
                text = f"{page.strip()}{layout[PAGE_SEPARATOR]}{text}"
            yield {
                "id": pair.id, "text": text, "topic": pair.discipline, "language": pair.language, "layout": name,
                "generator": pair.generator, "with_page": page is not None,
            }  # fmt: skip
