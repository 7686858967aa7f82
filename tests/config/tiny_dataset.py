"""A real folder of tokenised sources, a few thousand tokens each, for tests that need manifests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_mixers.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    Role,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
    source_name,
    write_manifest,
)
from megatron_synE.data.indexed import IndexedWriter


def write_dataset(
    folder: Path,
    tokens_of: Mapping[tuple[str, str, str], int],
    *,
    role: Role = "train",
    vocab_size: int = 1000,
    digest: str = "a" * 64,
    packed_seq_length: int | None = None,
) -> Path:
    """Sources (language, source, topic) with that many tokens in documents of 50; returns the manifest."""
    entries = []
    for (language, source, topic), num_tokens in tokens_of.items():
        prefix = f"{language}_{source}_{topic}{'' if role == 'train' else '_holdout'}_text_document"
        with IndexedWriter(folder / prefix, dtype="uint16") as writer:
            for start in range(0, num_tokens, 50):
                writer.add_document(np.arange(start, min(start + 50, num_tokens)) % vocab_size)
        assert writer.written is not None
        shard = ShardEntry(prefix=prefix, text_bytes=4 * num_tokens, **vars(writer.written))
        entries.append(
            SourceEntry(
                name=source_name(
                    language=language, source=source, topic=topic, suffix=None if role == "train" else "holdout"
                ),
                language=language,
                source=source,
                topic=topic,
                bucket=None,
                role=role,
                shards=(shard,),
                packed_seq_length=packed_seq_length,
            )
        )
    tokenizer = TokenizerIdentity(digest=digest, vocab_size=vocab_size, eos_id=0, bos_id=None)
    return write_manifest(
        DatasetManifest(
            schema_version=SCHEMA_VERSION, folder=folder, tokenizer=tokenizer, dtype="uint16", sources=tuple(entries)
        )
    )
