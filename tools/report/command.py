"""`syne report`: run folders to one page."""

import datetime
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from tools.report.commands import ReportOptions
from tools.report.content import Report, Section
from tools.report.evaluation import evaluation
from tools.report.guard import guard
from tools.report.held_out import held_out
from tools.report.history import phases, troubles
from tools.report.html import page
from tools.report.lineage import lineage
from tools.report.markdown import markdown
from tools.report.overview import overview
from tools.report.reads import reads
from tools.report.run_record import read_run, with_names
from tools.report.samples import parse_steps, samples
from tools.report.speed import speed
from tools.report.training import training


def write_report(options: ReportOptions) -> Path:
    """The file written; Markdown has its figures in a folder beside it.

    Errors: DataError if a run is no folder; ConfigError if `out` is one, or for steps that are none.
    """
    out = options.out or Path("report.md" if options.is_markdown else "report.html")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it")
    report = make_report(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not options.is_markdown:
        write_atomic(out, page(report).encode())
        return out
    folder = out.with_name(f"{out.stem}_figures")
    text, figures = markdown(report, figures_folder=folder.name)
    folder.mkdir(exist_ok=True)
    for name, svg in figures.items():
        write_atomic(folder / name, svg.encode())
    write_atomic(out, text.encode())
    return out


def make_report(options: ReportOptions) -> Report:
    """All sections, in the order in which a person asks."""
    steps = parse_steps(options.steps)
    if steps is not None and not options.samples:
        raise ConfigError(f"--steps {options.steps} says of which steps samples are shown; say how many with --samples")
    runs = with_names([read_run(folder) for folder in options.runs])
    sections: list[Section] = [overview(runs), training(runs), held_out(runs), reads(runs), phases(runs)]
    sections += [speed(runs), guard(runs), evaluation(runs, options.evaluations), troubles(runs)]
    if options.samples:
        sections.append(samples(runs, options.samples, steps=steps, tokenizer=options.tokenizer))
    sections.append(lineage(runs))
    names = ", ".join(run.name for run in runs)
    now = datetime.datetime.now(datetime.UTC)
    subtitle = f"Read from {', '.join(str(run.folder) for run in runs)} on {now:%Y-%m-%d %H:%M} UTC."
    return Report(title=f"{names}: report", subtitle=subtitle, sections=sections)
