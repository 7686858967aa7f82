"""No rank holds more than its own shard to save or load it, however the moments are spread."""

import json
from pathlib import Path

import pytest

from tests import tiny

RANKS = 4
LAYERS, HIDDEN, FFN, VOCAB = 6, 1024, 4096, 256


@pytest.mark.slow
def test_host_bytes_of_saving_and_loading_stay_below_one_and_a_fifth_of_the_own_shard(tmp_path: Path) -> None:
    tiny.manifest(tmp_path / "train", tiny.TWO_LANGUAGES)
    tree = tiny.run_tree(tmp_path, hf=None, validation={"manifests": []})
    tree["training"] |= {"precision": "bf16"}
    config = tiny.hf_config(
        hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=VOCAB,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "architecture")
    tree["model"] = {"hf_config": str(tmp_path / "architecture")}
    script = Path(__file__).with_name("host_bytes.py")
    tiny.launched(RANKS, script, tmp_path, tiny.write_run(tmp_path, tree))
    found = [json.loads((tmp_path / f"bytes_{rank}.json").read_text()) for rank in range(RANKS)]
    # By hand: q, k, v, o; gate, up, down; two norms a layer; two embeddings; a norm. 2 + 4 + 4 + 4 bytes each.
    a_layer = HIDDEN * (HIDDEN + 2 * HIDDEN // 2) + HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN
    parameters = LAYERS * a_layer + 2 * VOCAB * HIDDEN + HIDDEN
    assert sum(of_rank["own"] for of_rank in found) == 14 * parameters
    for of_rank in found:
        assert of_rank["own"] < 1.05 * 14 * parameters / RANKS
        print({name: round(value / of_rank["own"], 3) for name, value in of_rank.items()})
        for action in ("save", "background save", "load"):
            assert of_rank[action] < 1.2 * of_rank["own"], of_rank
    # What the reference takes: fp32 masters and moments of all, gathered.
    assert max(of_rank["fully_reshardable"] for of_rank in found) > 0.9 * 12 * parameters


def test_the_ranks_of_a_checkpoint_write_their_own_ranges_and_nothing_twice(tmp_path: Path) -> None:
    file = tiny.prepared(tmp_path, checkpoint={"async_save": True, "interval_tokens": 256, "keep_last": None})
    tiny.train(file, "training.stop_after_iterations=2", "training.precision=bf16", nproc=4, code=75)
    (row, *_) = (row for row in tiny.rows(tmp_path / "run", "checkpoint") if row["in_background"])
    folder = tmp_path / "run/checkpoints/iter_0000001"
    sizes = [file.stat().st_size for file in folder.glob("__*.distcp")]
    # Rank 0's snapshot is what its file holds, but for a header of about a kilobyte a chunk.
    assert len(sizes) == 4
    assert 0 < row["snapshot_bytes"] < max(sizes)
    assert max(sizes) < 1.3 * min(sizes)
    assert row["blocking_seconds"] > 0 and row["seconds"] > 0
