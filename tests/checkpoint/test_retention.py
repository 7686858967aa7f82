"""Which checkpoints stay after a save, and what is deleted: files, links, folders that may not go."""

import pytest

from megatron_synE.checkpoint import layout
from megatron_synE.exit_codes import CheckpointError
from tests.checkpoint.test_layout import fill, held_lease, save


def test_pruning_keeps_the_newest_and_what_is_incomplete(tmp_path):
    for iteration in (1, 2, 3, 4):
        save(tmp_path, iteration)
    (tmp_path / "iter_0000004" / "state.json").unlink()
    fill(tmp_path / layout.temporary_name(5, "x"), 5)
    assert [folder.name for folder in layout.prune(tmp_path, keep_last=2)] == ["iter_0000001"]
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"iter_0000002", "iter_0000003", "iter_0000004", layout.TRACKER}
    assert layout.prune(tmp_path, keep_last=None) == []
    assert [folder.name for folder in layout.prune(tmp_path, keep_last=1)] == ["iter_0000002"]
    assert layout.newest_complete(tmp_path) == tmp_path / "iter_0000003"


def test_pruning_keeps_one_to_go_back_to_where_preemptions_lie_between(tmp_path):
    """An interval of 100, a run that goes back 100: after a preemption at 150 the newest two reach 50 back."""
    for iteration, left in ((100, {100}), (150, {100, 150}), (200, {100, 150, 200}), (250, {150, 200, 250})):
        save(tmp_path, iteration)
        layout.prune(tmp_path, keep_last=2, reach=100)
        assert {layout.iteration_of(folder) for folder in layout.iteration_folders(tmp_path)} == left
        # Whatever iteration comes next may be bad; data from 99 before it on is left out.
        assert iteration < 200 or min(left) <= iteration + 1 - 100
    layout.prune(tmp_path, keep_last=1, reach=500)  # nothing lies so far back yet: the oldest stays
    assert {layout.iteration_of(folder) for folder in layout.iteration_folders(tmp_path)} == {150, 250}


def test_of_a_checkpoint_that_was_moved_to_another_disk_the_link_goes_and_the_checkpoint_stays(tmp_path):
    checkpoints, disk = tmp_path / "checkpoints", tmp_path / "disk"
    for iteration in (1, 2, 3, 9):
        save(checkpoints, iteration)
    disk.mkdir()
    for iteration in (1, 9):
        name = layout.iteration_name(iteration)
        (checkpoints / name).rename(disk / name)
        (checkpoints / name).symlink_to(disk / name)
    save(checkpoints, 9)  # written again: a folder of its own
    assert not (checkpoints / "iter_0000009").is_symlink()
    assert [folder.name for folder in layout.prune(checkpoints, keep_last=2)] == ["iter_0000001", "iter_0000002"]
    left = {"iter_0000003", "iter_0000009", layout.TRACKER}
    assert {path.name for path in checkpoints.iterdir()} == left
    for name in ("iter_0000001", "iter_0000009"):
        layout.check_complete(disk / name, verify_hashes=True)


def test_what_may_not_be_renamed_keeps_nothing_else(tmp_path, caplog):
    """As a mount point, or a folder that somebody has made immutable; here the name is another's."""
    for iteration in (1, 2, 3, 4):
        save(tmp_path, iteration)
    (tmp_path / ".tmp-iter_0000001-x-pruned" / "something").mkdir(parents=True)
    layout.prune(tmp_path, keep_last=1)
    assert "iter_0000001 could not be deleted: " in caplog.text and "not empty" in caplog.text
    assert [path.name for path in layout.iteration_folders(tmp_path)] == ["iter_0000001", "iter_0000004"]
    layout.prune(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.glob("*iter_*")] == ["iter_0000004"]


def test_what_may_not_be_deleted_keeps_nothing_else(tmp_path, monkeypatch, caplog):
    for iteration in (1, 2, 3, 4):
        save(tmp_path, iteration)
    delete = layout.shutil.rmtree

    def refusing(folder, **options):
        if "iter_0000001" in folder.name:
            raise OSError(16, "Device or resource busy")
        delete(folder, **options)

    monkeypatch.setattr(layout.shutil, "rmtree", refusing)
    layout.prune(tmp_path, keep_last=1)
    assert "iter_0000001-x-pruned could not be deleted: [Errno 16] Device or resource busy" in caplog.text
    assert [path.name for path in layout.iteration_folders(tmp_path)] == ["iter_0000004"]
    assert [path.name for path in tmp_path.glob(".tmp-*")] == [".tmp-iter_0000001-x-pruned"]


def test_a_file_that_another_node_wrote_and_that_is_not_seen_is_not_left_out(tmp_path):
    with pytest.raises(CheckpointError, match=r"__7_0\.distcp was written and is not seen here"):
        layout.write_manifest(tmp_path, {}, known_sha256={"__7_0.distcp": "ab"})
    assert not (tmp_path / layout.MANIFEST).exists()


def test_pruning_never_counts_what_the_run_passed_over(tmp_path):
    """10 and 15 are damaged in their content, so the run went on from 5; sizes alone do not tell."""
    for iteration in (5, 10, 15):
        save(tmp_path, iteration)
    written = save(tmp_path, 7)
    layout.prune(tmp_path, keep_last=1, written=written)
    left = {folder.name for folder in layout.iteration_folders(tmp_path)}
    assert left == {"iter_0000007", "iter_0000010", "iter_0000015"}


def test_pruning_takes_temporary_folders_of_its_own_alone(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for iteration in (1, 2, 3):
        save(checkpoints, iteration)
    lease = held_lease(tmp_path)
    mine, others = layout.temporary_name(4, lease.token), layout.temporary_name(4, "another")
    for name in (mine, others):
        (checkpoints / name).mkdir()
    pruned = layout.prune(checkpoints, keep_last=2, lease=lease)
    assert [folder.name for folder in pruned] == ["iter_0000001"]
    left = {folder.name for folder in checkpoints.iterdir()}
    assert left == {others, "iter_0000002", "iter_0000003", layout.TRACKER}
    assert [f.name for f in layout.prune(checkpoints, keep_last=0)] == ["iter_0000002"]  # one at least is kept
    lease.release()
