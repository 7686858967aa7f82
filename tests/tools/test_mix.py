"""`syne mix plan` and `simulate` by their numbers, and a language that nobody thought of."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from data_mixers.controllers import Observation, TopicLosses, decide
from data_mixers.manifest import DatasetManifest, read_manifest, write_manifest
from data_mixers.mixture import Reweight
from data_mixers.sampling import Sampler
from megatron_synE.checkpoint import layout
from megatron_synE.config.load import load_config
from megatron_synE.mixing import Mixture, mixture_of
from tests import tiny
from tools.cli import main
from tools.mix import planned_reads

SEQ_LENGTH = 32


def with_buckets(manifest: DatasetManifest) -> None:
    """Four topics zh/web/law-0 … law-3 become the four difficulty buckets of zh/web/law, as a sort writes them."""
    sources = []
    for entry in manifest.sources:
        topic, _, bucket = entry.topic.partition("-")
        name = f"{entry.language}/{entry.source}/{topic}" + (f"/{bucket}" if bucket else "")
        sources.append(replace(entry, name=name, topic=topic, bucket=bucket or None))
    write_manifest(replace(manifest, sources=tuple(sources)))


@pytest.fixture
def paced(tmp_path: Path) -> Path:
    """zh: 0.25 of 64 samples, in four buckets from easy to hard; en: the rest, without buckets."""
    tokens = {("zh", "web", f"law-{bucket}"): 1000 for bucket in range(4)} | {("en", "web", "math"): 1500}
    with_buckets(tiny.manifest(tmp_path / "train", tokens))
    stage = {"name": "adapt", "tokens": 64 * SEQ_LENGTH, "languages": {"zh": 0.25, "en": 0.75},
             "curriculum": {"pacing": "low_to_high", "languages": ["zh"]}}  # fmt: skip
    tree = tiny.run_tree(tmp_path, hf=tiny.hf_folder(tmp_path / "hf"), validation={"manifests": []})
    tree["data"] |= {"stages": [stage], "max_epochs": 9}
    return tiny.write_run(tmp_path, tree)


def test_plan_gives_tokens_epochs_share_and_ppl_quantiles_of_each_source_in_each_phase(
    paced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, totals = planned_reads(paced, [])
    # Four steps of 16 samples: 4 of the bucket whose turn it is, and 12 English ones.
    zh = [(part.phase, part.source, part.tokens, part.share, part.quantiles) for part in parts if part.quantiles]
    assert zh == [
        (f"adapt, step {step + 1}", f"zh/web/law/{step}", 4 * SEQ_LENGTH, 0.25, quantiles)
        for step, quantiles in enumerate(["0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00"])
    ]
    there = read_manifest(paced.parent / "train").sources
    windows = {entry.name: (entry.num_tokens - SEQ_LENGTH) // SEQ_LENGTH for entry in there}
    english = [part for part in parts if part.source == "en/web/math"]
    assert [part.tokens for part in english] == [12 * SEQ_LENGTH] * 4
    assert [part.epochs for part in english] == [12 * (n + 1) / windows["en/web/math"] for n in range(4)]
    assert totals["zh/web/law/0"] == (4 * SEQ_LENGTH, there[0].num_tokens)
    assert main(["mix", "plan", "--config", str(paced)]) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if "zh/web/law/2" in line and "step 3" in line]
    cells = [cell.strip() for cell in row.strip("│| ").replace("|", "│").split("│")]
    epochs = f"{4 / windows['zh/web/law/2']:.3f}"
    assert cells == ["adapt, step 3", "32", "zh/web/law/2", "0.2500", "128", epochs, "0.50-0.75"]
    law_0 = totals["zh/web/law/0"][1]
    assert re.search(rf"zh/web/law/0\s*│\s*128\s*│\s*{law_0:,}\s*│\s*{law_0 - 128:,}", printed)


def test_what_is_left_out_is_no_part_of_what_a_phase_reads(paced: Path) -> None:
    """Phases of 16 samples; 10 of the second and 10 of the third are left out, which moves epochs on."""
    plain, _ = planned_reads(paced, [])
    parts, totals = planned_reads(paced, ['data.skip_samples=["20:30","32:42"]'])
    for number in range(4):
        of_phase = [part for part in parts if part.phase == f"adapt, step {number + 1}"]
        assert sum(part.share for part in of_phase) == pytest.approx(1)
        assert sum(part.tokens for part in of_phase) == 16 * SEQ_LENGTH
    assert sum(read for read, _ in totals.values()) == 64 * SEQ_LENGTH
    ends = [[part.epochs for part in found if part.source == "en/web/math"][-1] for found in (plain, parts)]
    assert ends[1] / ends[0] == pytest.approx((48 + 15) / 48, abs=2 / 48)  # three quarters of 20 samples are English


def test_a_curriculum_over_sources_that_are_not_sorted_names_the_command_that_sorts(
    paced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = "data.stages.0.curriculum.languages=[en]"
    assert main(["mix", "plan", "--config", str(paced), override]) == 2
    message = capsys.readouterr().err
    assert "syne data sort" in message and "data.stages" in message and "Traceback" not in message


def test_a_third_language_with_topics_of_its_own_needs_no_code(tmp_path: Path) -> None:
    """French with three topics: planned, weighed, steered; the other languages stay where they are."""
    topics = ("cuisine", "droit", "océan")
    tokens = {("fr", "web", topic): 4000 for topic in topics}
    tokens |= {("fr", "book", "roman"): 3000, ("zh", "web", "law"): 3000, ("en", "web", "law"): 4000}
    manifest = tiny.manifest(tmp_path / "train", tokens)
    stage = {"name": "adapt", "tokens": 200 * SEQ_LENGTH, "languages": {"fr": 0.5, "zh": 0.2, "en": 0.3},
             "sources": {"fr": {"web": 0.8, "book": 0.2}},
             "topics": {"fr": {"web": {"cuisine": 0.5, "droit": 0.25, "océan": 0.25}}}}  # fmt: skip
    tree = tiny.run_tree(tmp_path, hf=None)
    tree["data"]["stages"] = [stage]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    mixture = mixture_of(load_config(config, ["mixture.controller=syne"]).resolved, [manifest])
    assert mixture.groups == ("fr/web",)
    assert read_share(mixture, "fr/web/cuisine") == Fraction(40, 200)
    ratios = mixture.ratios_next("fr/web", consumed_samples=0)
    assert ratios == pytest.approx({"cuisine": 0.5, "droit": 0.25, "océan": 0.25})
    first = decide(mixture.settings, ratios, None, seen(dict.fromkeys(topics, 2.0)))
    worse = decide(mixture.settings, ratios, first.state, seen({"cuisine": 2.0, "droit": 2.0, "océan": 2.5}))
    assert worse.ratios["océan"] > ratios["océan"]
    decision = Reweight(start_sample=100, group="fr/web", ratios=tuple(worse.ratios.items()))
    steered = replace(mixture, reweights=(decision,))
    for name, share in (("zh/web/law", 0.2), ("en/web/law", 0.3), ("fr/book/roman", 0.1)):
        assert abs(read_share(steered, name) * 200 - 200 * share) <= 2
    assert read_share(steered, "fr/web/océan") > read_share(mixture, "fr/web/océan")


def read_share(mixture: Mixture, name: str) -> Fraction:
    schedule = mixture.schedule
    counts = dict(zip([s.name for s in schedule.sources], Sampler(schedule).cursors(schedule.num_samples), strict=True))
    return Fraction(counts[name], schedule.num_samples)


def seen(loss: dict[str, float]) -> Observation:
    """30 held-out documents of 100 tokens a topic, each a little off the topic's loss."""
    return Observation(
        consumed_tokens=0,
        losses={
            topic: TopicLosses(nll_sums=tuple(100 * value + n % 3 for n in range(30)), tokens=(100,) * 30)
            for topic, value in loss.items()
        },
        tokens_by_topic=dict.fromkeys(loss, 0),
    )


def test_simulate_sets_every_controller_beside_equal_shares_with_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mix", "simulate", "--worlds", "3", "--tokens", "2e9", "--interval", "4e8"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Simulated curves, not measurements of a model.")
    interval = r"\d\.\d{4} \([+-]\d\.\d{4} \[[+-]\d\.\d{4}, [+-]\d\.\d{4}\]\)"
    for name in ("static", "syne_paper", "syne", "exponentiated_gradient", "ado", "velocitune"):
        assert re.search(rf"^\| {name} \| {interval} \| {interval} \| \d\.\d{{4}} \|$", printed, re.MULTILINE), name
    assert re.search(r"^\| stratified \| \d\.\d{4} \| \d\.\d{4} \|", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"kind": "train", "iter', "line 2: no row of a run"),
        ("[1]", "line 2: no row of a run"),
        ("{}", "line 2: no row of a run"),
        ('{"kind": "observation", "iteration": 4, "group": "fr/web"}', "line 2: cannot be taken again"),
        ('{"kind": "guard", "iteration": 4, "set": "en"}', "line 2: cannot be taken again"),
    ],
)
def test_a_damaged_record_is_named_by_its_line(
    paced: Path, line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = paced.parent
    (folder / "run_config.yaml").write_text(paced.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"kind": "train", "iteration": 1}\n' + line + "\n", encoding="utf-8")
    assert main(["mix", "replay", str(folder)]) == 3
    assert named in capsys.readouterr().err


def test_a_simulation_without_two_decisions_or_a_place_for_its_plot_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tokens in ("1e8", "inf"):
        assert main(["mix", "simulate", "--tokens", tokens, "--interval", "6e7"]) == 2
    short = ["mix", "simulate", "--worlds", "2", "--tokens", "2e6", "--interval", "1e6"]
    assert main([*short, "--plot", str(tmp_path / "nowhere" / "a.png")]) == 2
    assert "two or more intervals" in (printed := capsys.readouterr().err) and "cannot be written" in printed


def test_a_range_after_which_the_run_would_be_refused_is_refused_by_append_too(
    paced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """English is read 48 times; with 12 samples of the third step left out, of which 9 are English, 57 times."""
    (english,) = (s for s in read_manifest(paced.parent / "train").sources if s.language == "en")
    windows = (english.num_tokens - SEQ_LENGTH) // SEQ_LENGTH
    run = paced.parent / "run"
    run.mkdir()
    for limit, code in ((57.5 / windows, 0), (56.5 / windows, 2)):
        tree = yaml.safe_load(paced.read_text())
        tree["data"]["max_epochs"] = limit
        (run / "run_config.yaml").write_text(yaml.safe_dump(tree))
        loaded = load_config(run / "run_config.yaml", []).resolved
        planned = mixture_of(loaded, [read_manifest(paced.parent / "train")]).schedule
        (run / "schedule.json").write_text(planned.to_json())
        assert main(["mix", "append", str(run), "--skip", "32:44"]) == code
    told = capsys.readouterr().err
    assert "data.skip_samples: the plan reads sources more often than allowed" in told and "en/web/math" in told


def test_a_run_that_was_renamed_is_asked_for_its_own_checkpoints(
    paced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its configuration names the folder it once had."""
    run = paced.parent / "renamed"
    tree = yaml.safe_load(paced.read_text())
    tree["run"]["dir"] = str(tmp_path / "old name")
    checkpoint = run / "checkpoints" / "iter_0000010"
    checkpoint.mkdir(parents=True)
    (run / "run_config.yaml").write_text(yaml.safe_dump(tree))
    loaded = load_config(run / "run_config.yaml", []).resolved
    schedule = mixture_of(loaded, [read_manifest(paced.parent / "train")]).schedule
    (run / "schedule.json").write_text(schedule.to_json())
    state = layout.CommonState(
        iteration=10, consumed_samples=40, consumed_tokens=40 * SEQ_LENGTH, adam_step=10, has_optimizer=True,
        weights_dtype="float32", tied=True, vocab_size=8,
    )  # fmt: skip
    layout.write_state(checkpoint, state)
    (checkpoint / ".metadata").write_bytes(b"")
    layout.write_manifest(checkpoint, {"parent_lineage_hash": None})
    assert main(["mix", "append", str(run), "--skip", "32:44"]) == 2
    assert "skip 32:44 must be a range of samples that are not read yet, inside 40:" in capsys.readouterr().err
    for text in ("32-44", "²:44"):
        assert main(["mix", "append", str(run), "--skip", text]) == 2
        assert f"--skip {text} is not a range of samples; write start:stop" in capsys.readouterr().err
