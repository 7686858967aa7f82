"""Which folder counts as a checkpoint, and that nothing half-written ever does."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.layout import CommonState
from megatron_synE.exit_codes import CheckpointError, LeaseLostError
from megatron_synE.runtime import lease as leases

STATE = CommonState(
    iteration=3,
    consumed_samples=12,
    consumed_tokens=1200,
    adam_step=3,
    has_optimizer=True,
    weights_dtype="bfloat16",
    tied=False,
    vocab_size=131,
    schedule={"json": "{}"},
    last_validation={"zh/law": 2.5},
    layout={"world_size": 2},
)


def fill(folder, iteration):
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"table")
    (folder / "__0_0.distcp").write_bytes(bytes(1000))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    layout.write_state(folder, replace(STATE, iteration=iteration))
    layout.write_manifest(folder, {"kind": "test"})


def save(checkpoints, iteration):
    temporary = checkpoints / layout.temporary_name(iteration, "x")
    fill(temporary, iteration)
    layout.publish(temporary, checkpoints / layout.iteration_name(iteration))
    return checkpoints / layout.iteration_name(iteration)


def test_state_comes_back_as_it_was_written(tmp_path):
    layout.write_state(tmp_path, STATE)
    assert layout.read_state(tmp_path) == STATE
    assert json.loads((tmp_path / "state.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2, this program reads 1"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"iteration": None}, "iteration"),
    ],
)
def test_a_state_of_another_schema_is_refused(tmp_path, change, message):
    layout.write_state(tmp_path, STATE)
    content = json.loads((tmp_path / "state.json").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "state.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        layout.read_state(tmp_path)


def test_publishing_moves_the_folder_and_then_the_tracker(tmp_path):
    final = save(tmp_path, 3)
    layout.check_complete(final, verify_hashes=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000003", layout.TRACKER]
    assert (tmp_path / layout.TRACKER).read_text() == "3\n"
    assert layout.newest_complete(tmp_path) == final


def test_publishing_over_an_older_folder_of_the_same_name_replaces_it(tmp_path):
    final = save(tmp_path, 3)
    (final / "old").write_text("")
    assert save(tmp_path, 3) == final
    assert not (final / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000003", layout.TRACKER]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "other content"])
def test_an_incomplete_folder_is_not_taken_for_whole(tmp_path, caplog, name, damage):
    older, newer = save(tmp_path, 2), save(tmp_path, 3)
    file = newer / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "shorter" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        layout.check_complete(newer, verify_hashes=True)
    with caplog.at_level(logging.WARNING):
        assert layout.newest_complete(tmp_path, verify_hashes=True) == older
    assert "passing over iter_0000003" in caplog.text
    if damage != "other content":
        assert layout.newest_complete(tmp_path) == older
        assert layout.complete_checkpoints(tmp_path) == [older]
    else:  # only names and sizes are looked at where nothing else is asked for
        assert layout.newest_complete(tmp_path) == newer
        assert layout.complete_checkpoints(tmp_path) == [older, newer]


def test_a_folder_without_manifest_is_not_taken_for_whole(tmp_path):
    (save(tmp_path, 3) / "manifest.json").unlink()
    assert layout.newest_complete(tmp_path) is None
    with pytest.raises(CheckpointError, match="not written to its end"):
        layout.resolve_checkpoint(tmp_path / "iter_0000003")


def test_a_manifest_that_lists_no_tensor_table_is_refused(tmp_path):
    folder = tmp_path / "iter_0000001"
    fill(folder, 1)
    (folder / ".metadata").unlink()
    layout.write_manifest(folder, {})
    with pytest.raises(CheckpointError, match=r"does not list \.metadata"):
        layout.check_complete(folder, verify_hashes=False)


def test_temporary_folders_never_count(tmp_path):
    fill(tmp_path / layout.temporary_name(9, "x"), 9)
    assert layout.newest_complete(tmp_path) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        layout.resolve_checkpoint(tmp_path)


@pytest.mark.parametrize("tracker", ["7\n", "release\n", ""])
def test_the_tracker_may_point_anywhere(tmp_path, tracker, caplog):
    final = save(tmp_path, 3)
    assert layout.newest_complete(tmp_path) == final
    assert caplog.text == ""
    (tmp_path / layout.TRACKER).write_text(tracker)
    assert layout.newest_complete(tmp_path) == final
    assert ("names iteration 7; using iter_0000003" in caplog.text) == (tracker == "7\n")


def test_what_is_newer_than_one_wants_is_not_looked_at(tmp_path, caplog):
    first, second, third = (save(tmp_path, iteration) for iteration in (2, 4, 6))
    (third / "state.json").unlink()
    found = {at_most: layout.newest_complete(tmp_path, at_most=at_most) for at_most in (1, 2, 3, 4, 5)}
    assert found == {1: None, 2: first, 3: first, 4: second, 5: second}
    assert "passing over" not in caplog.text
    assert layout.newest_complete(tmp_path, at_most=6) == second
    assert "passing over iter_0000006" in caplog.text


def test_the_highest_iteration_wins_not_the_last_in_the_alphabet(tmp_path):
    save(tmp_path, 9_999_999)
    final = save(tmp_path, 10_000_000)
    assert layout.newest_complete(tmp_path) == final


def test_a_checkpoint_is_found_from_itself_its_parent_or_the_run(tmp_path):
    final = save(tmp_path / "run" / "checkpoints", 3)
    for path in (final, final.parent, tmp_path / "run"):
        assert layout.resolve_checkpoint(path) == final
    with pytest.raises(CheckpointError, match="no such folder"):
        layout.resolve_checkpoint(tmp_path / "nowhere")


def test_the_lineage_hash_follows_content_and_parent(tmp_path):
    folder = tmp_path / "iter_0000001"
    fill(folder, 1)

    def lineage(**extra):
        layout.write_manifest(folder, extra)
        return layout.read_manifest(folder)["lineage_hash"]

    first = lineage()
    assert lineage() == first
    assert lineage(parent_lineage_hash="abc") != first
    (folder / "__0_0.distcp").write_bytes(b"other")
    assert lineage() != first


def test_the_lineage_hash_is_that_of_sorted_hashes_and_the_parent_by_hand(tmp_path):
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    (folder / "b").write_bytes(b"second")
    (folder / "a").write_bytes(b"first")
    # The names sorted, then the parent, as JSON with sorted keys: "files" before "parent".
    text = '{"files": {"a": "%s", "b": "%s"}, "parent": %s}'
    hashes = tuple(hashlib.sha256(content).hexdigest() for content in (b"first", b"second"))
    for extra, parent in (({}, "null"), ({"parent_lineage_hash": "0a9e", "kind": "test"}, '"0a9e"')):
        layout.write_manifest(folder, extra)
        manifest = layout.read_manifest(folder)
        assert manifest["lineage_hash"] == hashlib.sha256((text % (*hashes, parent)).encode()).hexdigest()
        assert manifest["files"]["b"] == {"size_bytes": 6, "sha256": hashes[1]}
        assert manifest.keys() == {"schema_version", "lineage_hash", "files", *extra}


def held_lease(tmp_path):
    """A lease on a run folder of its own."""
    (tmp_path / "held").mkdir(exist_ok=True)
    return leases.take(tmp_path / "held")


def test_who_lost_the_lease_deletes_publishes_and_withdraws_nothing(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for iteration in (1, 2):
        save(checkpoints, iteration)
    temporary = checkpoints / layout.temporary_name(3, "x")
    fill(temporary, 3)
    lease = held_lease(tmp_path)
    (tmp_path / "held" / leases.LEASE).unlink()
    for act in (
        lambda: layout.prune(checkpoints, keep_last=1, lease=lease),
        lambda: layout.publish(temporary, checkpoints / "iter_0000003", lease=lease),
        lambda: layout.publish(temporary, checkpoints / "iter_0000002", lease=lease),
        lambda: layout.withdraw_after(checkpoints, 1, lease),
    ):
        with pytest.raises(LeaseLostError, match="nobody holds this run now"):
            act()
        assert [folder.name for folder in layout.complete_checkpoints(checkpoints)] == ["iter_0000001", "iter_0000002"]
        assert temporary.is_dir()
    lease.release()


def test_what_lies_after_the_checkpoint_that_a_run_went_back_to_is_withdrawn(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for iteration in (1, 2, 3, 4):
        save(checkpoints, iteration)
    lease = held_lease(tmp_path)
    layout.withdraw_after(checkpoints, 2, lease)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["iter_0000001", "iter_0000002", layout.TRACKER]
    assert (checkpoints / layout.TRACKER).read_text() == "2\n"
    lease.release()


def test_what_may_not_be_withdrawn_is_named_and_what_may_not_be_deleted_is_left(tmp_path, monkeypatch, caplog):
    checkpoints = tmp_path / "checkpoints"
    for iteration in (1, 2, 3):
        save(checkpoints, iteration)
    lease = held_lease(tmp_path)
    busy = OSError(16, "Device or resource busy")
    with monkeypatch.context() as patch:
        patch.setattr(layout.shutil, "rmtree", raising(busy))
        layout.withdraw_after(checkpoints, 2, lease)
    assert [folder.name for folder in layout.iteration_folders(checkpoints)] == ["iter_0000001", "iter_0000002"]
    assert "-withdrawn could not be deleted: [Errno 16]" in caplog.text
    monkeypatch.setattr(layout.Path, "rename", raising(busy))
    with pytest.raises(CheckpointError, match="iter_0000002: the run goes back to iteration 1 and this one must go"):
        layout.withdraw_after(checkpoints, 1, lease)
    lease.release()


def raising(error):
    def refuse(*_, **__):
        raise error

    return refuse


def test_a_folder_written_again_is_whole_though_the_one_it_replaces_stays(tmp_path, monkeypatch, caplog):
    final = save(tmp_path, 1)
    temporary = tmp_path / layout.temporary_name(1, "x")
    fill(temporary, 1)
    rmtree = layout.shutil.rmtree

    def refusing(folder, **options):
        if not options:
            raise OSError(16, "Device or resource busy")
        rmtree(folder, **options)

    monkeypatch.setattr(layout.shutil, "rmtree", refusing)
    layout.publish(temporary, final)
    assert "could not be deleted: [Errno 16]" in caplog.text and layout.newest_complete(tmp_path) == final


def test_what_may_never_be_deleted_is_put_aside_as_often_as_it_is_in_the_way(tmp_path, monkeypatch):
    """As where a run goes back to the same checkpoint twice, while an evaluation reads those behind it."""
    checkpoints = tmp_path / "checkpoints"
    save(checkpoints, 1)
    lease = held_lease(tmp_path)
    monkeypatch.setattr(layout, "_delete", lambda folder: None)
    monkeypatch.setattr(layout.shutil, "rmtree", lambda folder, ignore_errors: None)
    for _ in range(3):
        save(checkpoints, 2)
        temporary = checkpoints / layout.temporary_name(1, lease.token)
        fill(temporary, 1)
        layout.publish(temporary, checkpoints / "iter_0000001", lease=lease)
        layout.withdraw_after(checkpoints, 1, lease)
        assert layout.complete_checkpoints(checkpoints) == [checkpoints / "iter_0000001"]
    assert len(list(checkpoints.glob(".tmp-iter_*"))) == 6
    lease.release()


def test_a_manifest_without_a_list_of_files_and_files_that_are_no_json_object_are_refused(tmp_path):
    final = save(tmp_path, 3)
    manifest = json.loads((final / "manifest.json").read_text())
    for content, message in (
        (json.dumps(manifest | {"files": []}), r"manifest\.json: does not list the checkpoint's files"),
        ("[]", r"manifest\.json: expected a JSON object"),
        ("{", r"manifest\.json: not valid JSON"),
        (json.dumps(manifest | {"schema_version": 2}), "schema_version is 2, this program reads 1; export it to a "),
    ):
        (final / "manifest.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            layout.read_manifest(final)
    (final / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read \(No such file or directory\)"):
        layout.read_state(final)


def test_names_of_folders(tmp_path):
    assert layout.iteration_name(12) == "iter_0000012"
    assert layout.temporary_name(12, "abc") == ".tmp-iter_0000012-abc"
    assert layout.iteration_of(tmp_path / "iter_12345678") == 12_345_678
    for name in ("iter_12", "iter_0000012x", "xiter_0000012", ".tmp-iter_0000012-abc"):
        with pytest.raises(CheckpointError, match=r"not a checkpoint folder \(expected a name such as iter_0000010\)"):
            layout.iteration_of(tmp_path / name)
    assert layout.iteration_folders(tmp_path / "absent") == []


def test_hashes_known_from_writing_are_taken_over(tmp_path):
    folder = tmp_path / "iter_0000001"
    fill(folder, 1)
    digest = layout.sha256_of(folder / "__0_0.distcp")
    expected = subprocess.run(["sha256sum", folder / "__0_0.distcp"], capture_output=True, text=True, check=True)
    assert digest == expected.stdout.split()[0]
    layout.write_manifest(folder, {}, known_sha256={"__0_0.distcp": digest})
    layout.check_complete(folder, verify_hashes=True)
    layout.write_manifest(folder, {}, known_sha256={"__0_0.distcp": "f" * 64})  # believed, not read again
    assert layout.read_manifest(folder)["files"]["__0_0.distcp"]["sha256"] == "f" * 64


def test_a_publisher_killed_at_any_system_call_leaves_whole_checkpoints_only(tmp_path):
    """Save iteration 4 beside 3 in a child that dies at its n-th rename, fsync or rmtree, for many n."""
    script = """
import os, shutil, sys
from pathlib import Path
from megatron_synE.checkpoint import layout
sys.path.insert(0, sys.argv[3])
from test_layout import save
left = int(sys.argv[2])
def dying(call):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return wrapped
os.fsync, os.rename, os.replace = dying(os.fsync), dying(os.rename), dying(os.replace)
Path.rename, Path.replace, shutil.rmtree = dying(Path.rename), dying(Path.replace), dying(shutil.rmtree)
checkpoints = Path(sys.argv[1])
save(checkpoints, 4)
layout.prune(checkpoints, keep_last=1)
"""
    for count in range(0, 60, 4):
        checkpoints = tmp_path / str(count)
        save(checkpoints, 3)
        here = os.path.dirname(__file__)  # noqa: PTH120  handed to a child as text
        child = subprocess.run([sys.executable, "-c", script, str(checkpoints), str(count), here], check=False)
        newest = layout.newest_complete(checkpoints, verify_hashes=True)
        assert newest is not None
        if child.returncode == 0:
            assert newest.name == "iter_0000004"
            break
        assert child.returncode == 9
    else:
        pytest.fail("the child never reached its end")
