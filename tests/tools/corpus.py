"""Small made-up documents in Chinese, English and code, and tokenizers trained on them."""

import json
import random
from pathlib import Path

CONTROL = ("<|end_of_text|>", "<|begin_of_text|>", "<|im_end|>")
ZH = (
    "民法典规定家庭成员应当互相帮助",
    "合同自成立时生效",
    "设函数的最小值为三",
    "我们学习数学和物理",
    "话说天下大势分久必合",
)
EN = (
    "the court held that the contract was valid",
    "let x be the smallest root",
    "water boils at 100 degrees",
    "it's a fine day",
)
CODE = ("def f(x):\n    return x + 1\n", "for i in range(10):\n    print(i)\n", "class A:\n    pass\n")


def documents(count: int, *, seed: int = 0, kinds: tuple[tuple[str, ...], ...] = (ZH, EN, CODE)) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{number}. " + "。 ".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 12)))
        for number in range(count)
    ]


def hf_folder(folder: Path, *, vocab_size: int = 600) -> Path:
    """A byte-level BPE tokenizer with Llama-like control tokens, one of them not marked special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(200), trainer)
    tokenizer.add_tokens([AddedToken(token, special=token != "<|im_end|>", normalized=False) for token in CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|end_of_text|>", "bos_token": {"content": "<|begin_of_text|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_jsonl(path: Path, texts: list[str], *, topics: list[str] | None = None) -> Path:
    rows = [{"text": text} if topics is None else {"text": text, "topic": topics[n]} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
