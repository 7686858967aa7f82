"""What must be the same on every rank is compared; what a later start of a run has otherwise is said and kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_mixers.errors import ConfigError
from megatron_synE import train
from megatron_synE.exit_codes import OneRankError
from megatron_synE.run_files import config_changes
from megatron_synE.runtime import control
from megatron_synE.runtime import device as devices
from tests import tiny

OTHER_CONFIG = Path(__file__).with_name("other_config.py")
FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from tools.cli import main
sys.argv[:1] = ["syne"]
sys.exit(main())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("same")
    tiny.prepared(root)
    return root


@pytest.mark.parametrize("other", ["optimizer.lr=2e-3", "parallel.tensor_model_parallel_size=2"])
def test_a_rank_with_another_configuration_ends_the_run_before_it_begins(
    root: Path, tmp_path: Path, other: str
) -> None:
    arguments = ["-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}"]
    done = tiny.python(*arguments, OTHER=other)
    assert done.returncode == 2, done.stderr[-4000:]
    assert done.stderr.count("error: rank 1 does not have rank 0's configuration: a file was edited") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_rank_with_other_data_is_named(root: Path, tmp_path: Path) -> None:
    """The same configuration, names and sizes, other tokens: as where one node has an older copy."""
    tiny.manifest(tmp_path / "copy", tiny.TWO_LANGUAGES, seed=5)
    done = tiny.python(
        "-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}",
        COPY=f"{root / 'train'}:{tmp_path / 'copy'}",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-4000:]
    assert "rank 1 does not have rank 0's data: a file was edited" in done.stderr


def test_held_out_files_that_one_rank_finds_damaged_are_named(root: Path, tmp_path: Path) -> None:
    """Manifest and sizes are rank 0's: what a node's own disk has made of a file shows when it is read."""
    copy = shutil.copytree(root / "held", tmp_path / "copy")
    for file in copy.glob("*.bin"):
        file.write_bytes(b"\xff" * file.stat().st_size)
    done = tiny.python(
        "-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}",
        COPY=f"{root / 'held'}:{copy}",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr[-4000:]
    assert done.stderr.count("error: ") == 1 and f"error: {copy}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_without_fp8_on_one_node_is_named(root: Path, tmp_path: Path) -> None:
    done = tiny.python(
        "-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}", "training.precision=bf16",
        "training.fp8=hybrid", NO_FP8="1",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-4000:]
    assert done.stderr.count("error: training.fp8=hybrid needs an H100 or newer") == 1


def test_a_processor_that_makes_another_precision_of_auto_is_named(root: Path, tmp_path: Path) -> None:
    done = tiny.python(
        "-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}", "training.precision=auto",
        BF16="1",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-4000:]
    assert "error: rank 1 does not have rank 0's precision (auto goes by the processor: set " in done.stderr


def test_a_rank_that_cannot_write_to_the_run_folder_is_heard(root: Path, tmp_path: Path) -> None:
    done = tiny.python(
        "-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}", READ_ONLY="1"
    )
    assert done.returncode == 2, done.stderr[-4000:]
    assert done.stderr.count("error: ") == 1 and "cannot be written (Read-only file system)" in done.stderr


@pytest.mark.parametrize(
    ("rank", "local_rank", "have_met", "speaks"),
    [("0", "0", False, True), ("1", "1", False, False), ("8", "0", False, True), ("8", "0", True, False)],
)
def test_before_ranks_have_met_the_first_of_each_node_says_what_it_found(
    rank: str,
    local_rank: str,
    have_met: bool,
    speaks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A node that does not see the folder of the run's files; rank 0 waits for it and cannot know why."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: have_met)
    assert train._as_one_rank(tmp_path / "absent.yaml", []) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{'' if rank == '0' else f'[rank {rank}] '}error: {tmp_path / 'absent.yaml'}") == speaks
    assert bool(said) == speaks


def test_a_rank_without_a_gpu_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight ranks on a node of four cards the last four; rank 0 has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(OneRankError, match="local rank 4 has no GPU: 4 visible") as found:
        devices.select("auto", local_rank=4)
    assert found.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "said"), [({"seed": 5}, "weights to begin with"), ({"rms_norm_eps": 1e-6}, "config.json of the model")]
)
def test_a_rank_whose_node_has_another_copy_of_the_model_is_named(
    root: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    done = tiny.python(
        "-c", tiny.LAUNCH, 2, OTHER_CONFIG, root / "run.yaml", f"run.dir={tmp_path / 'run'}",
        HF=str(tiny.hf_folder(tmp_path / "copy", **changes)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-4000:]
    assert f"rank 1 does not have rank 0's {said}: a file was edited" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_one_rank_lacks_is_named_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two ranks hold stands in for what they would send each other."""
    group: Any = None
    with_it, without = {"torch": "2.13", "apex": "0.1"}, {"torch": "2.13"}
    monkeypatch.setattr(control.dist, "get_world_size", lambda group: 2)
    for ranks in ([with_it, without], [without, with_it]):

        def gather(found: list[object], mine: object, group: object, ranks: list[dict[str, str]] = ranks) -> None:
            found[:] = ranks

        monkeypatch.setattr(control.dist, "all_gather_object", gather)
        for mine in ranks:
            with pytest.raises(ConfigError, match="rank 1 does not have rank 0's apex:"):
                control.require_same(group, mine)


def test_what_a_resumed_run_has_otherwise_is_said_and_kept(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=2", code=75)
    slice_two = ["training.stop_after_iterations=1", "optimizer.adam_beta2=0.999", "data.document_masking=false"]
    second = tiny.train(root / "run.yaml", f"run.dir={run}", *slice_two, code=75)
    said = [line for line in second.stderr.splitlines() if " at the last start " in line]
    assert sorted(line.split(" ", 1)[1] for line in said) == [
        "data.document_masking was True at the last start and is False at this one, which goes on from iteration 2",
        "optimizer.adam_beta2 was 0.95 at the last start and is 0.999 at this one, which goes on from iteration 2",
    ]
    third = tiny.train(root / "run.yaml", f"run.dir={run}", *slice_two[1:])
    assert " at the last start " not in third.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    changes = [attempt["changes"] for attempt in (*manifest["attempts"], manifest["attempt"])]
    assert changes == [{}, {"optimizer.adam_beta2": [0.95, 0.999], "data.document_masking": [True, False]}, {}]


def test_changes_of_a_configuration_by_hand() -> None:
    was = {"a": {"b": 1, "c": [1, 2], "gone": None}, "training": {"stop_after_iterations": 3}, "same": [], "p": "x"}
    now = {"a": {"b": 1, "c": (1, 3, 4), "d": {}}, "training": {"stop_after_iterations": 9}, "same": [], "p": Path("x")}
    assert config_changes(was, now) == {"a.c.1": (2, 3), "a.c.2": (None, 4), "a.d": (None, {})}


def test_a_run_over_more_files_than_may_be_open_at_first(tmp_path: Path) -> None:
    tiny.prepared(tmp_path)
    tiny.manifest(tmp_path / "train", {("en", "web", f"t{n}"): 200 for n in range(60)})
    stage = {"name": "adapt", "tokens": 12 * 256, "languages": {"en": 1.0}}
    tree = tiny.run_tree(tmp_path, hf=tmp_path / "hf", validation={"manifests": []})
    tree["data"] |= {"stages": [stage], "num_workers": 1}
    tiny.write_run(tmp_path, tree)
    done = tiny.python("-c", FEW_FILES, "train", "--config", tmp_path / "run.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
