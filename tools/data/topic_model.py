"""The topic classifier: a TinyBERT-shaped encoder, the mean of its last states, one linear layer; its folder.

    text ─ tokenizer.json ─ ids [b, s] ─ encoder ─ states [b, s, h] ─ mean over the text ─ head ─ logits [b, topics]
b documents, s tokens of the longest of them, h hidden size
The first max_length tokens of a document are read.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from data_mixers.errors import ConfigError, DataError
from data_mixers.file_version import check_version
from tools.data.topic_labels import OTHERS, Topics, read_topics
from tools.data.topic_options import Shape

SCHEMA_VERSION = 1  # of classifier.json
WEIGHTS, SETTINGS, TOKENIZER, TOPICS = "model.safetensors", "classifier.json", "tokenizer.json", "topics.json"
PAD, UNKNOWN, START, END, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS_PER_TOKEN = 12  # ours: text beyond max_length times this is not even tokenised; English has 4 to 5
NORMALIZER, PRE_TOKENIZER = BertNormalizer(lowercase=True, handle_chinese_chars=True), BertPreTokenizer()
LONGEST_END = 5  # ours: characters of a word end that is a token of its own
BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""With padding. On one core 1,024 to 4,096 differ by 8 %; the smaller, the less padding. cuda: a guess."""


class TopicClassifier(nn.Module):
    def __init__(self, config: BertConfig, *, num_topics: int) -> None:
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(config.hidden_size, num_topics)

    def features(self, ids: Tensor, mask: Tensor | None, *, words_only: bool = False) -> Tensor:
        """The mean state of each document: [b, s] -> [b, h]. mask: 1 for a token, 0 for padding; None: no padding.

        words_only: of the embeddings, without the layers.
        """
        states: Tensor  # [b, s, h]
        if words_only:
            states = self.encoder.embeddings(input_ids=ids)
        else:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if mask is None:
            return states.mean(dim=1)
        weights = mask.unsqueeze(-1).to(states.dtype)  # [b, s, 1]
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """[b, s] -> [b, topics]."""
        logits: Tensor = self.head(self.dropout(self.features(ids, mask)))
        return logits


@dataclass(frozen=True)
class Trained:
    model: TopicClassifier
    tokenizer: Tokenizer
    topics: Topics
    labels: tuple[str, ...]
    """Topic of each logit."""
    temperature: float
    threshold: float
    """A document whose highest probability is below it becomes OTHERS."""
    max_length: int


def new_config(shape: Shape, *, vocab_size: int, max_length: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_size,
        max_position_embeddings=max_length,
        type_vocab_size=1,
        pad_token_id=0,
    )


def train_tokenizer(texts: Sequence[str], *, vocab_size: int, max_length: int) -> Tokenizer:
    """WordPiece on lower-cased words; a Chinese character is a word. The same texts give the same tokenizer.

    The vocabulary: every character seen twice, and the most frequent words and word ends, three to one, ties in the
    order of the alphabet. (The tokenizers library's own WordPiece trainer gives another vocabulary at every run.)
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(words_of(text))
    characters: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
        inside.update(word[1:])
        for size in range(2, min(len(word), LONGEST_END + 1)):
            ends[f"##{word[-size:]}"] += count
    single = [character for character in _by_count(characters) if characters[character] > 1]
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *single, *(f"##{character}" for character in single if inside[character])])
    tokens = dict.fromkeys(list(tokens)[: vocab_size * 3 // 4])
    room = vocab_size - len(tokens)
    tokens |= dict.fromkeys(_by_count(words)[: room * 3 // 4])
    tokens |= dict.fromkeys(_by_count(ends)[: vocab_size - len(tokens)])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=60))
    tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, PRE_TOKENIZER
    return with_ends(tokenizer, max_length=max_length)


def words_of(text: str) -> list[str]:
    """Lower-cased words; a Chinese character is a word."""
    return [word for word, _ in PRE_TOKENIZER.pre_tokenize_str(NORMALIZER.normalize_str(text))]


def _by_count(counts: Counter[str]) -> list[str]:
    return [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def with_ends(tokenizer: Tokenizer, *, max_length: int) -> Tokenizer:
    """Puts [CLS] and [SEP] round every text and cuts it to max_length. Errors: ConfigError without those tokens."""
    from tokenizers.processors import TemplateProcessing

    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    missing = [token for token, number in ids.items() if number is None]
    if missing:
        raise ConfigError(f"the tokenizer has no {', '.join(missing)}; a BERT tokenizer is needed")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    tokenizer.enable_truncation(max_length)
    return tokenizer


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int) -> list[list[int]]:
    """The ids of each text, [CLS] and [SEP] included, in the order of the texts. Blanks before it do not count."""
    cut = max_length * CHARACTERS_PER_TOKEN
    return [encoding.ids for encoding in tokenizer.encode_batch_fast([text.lstrip()[:cut] for text in texts])]


def padded(rows: Sequence[list[int]], *, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
    """(ids [b, s], mask [b, s] or None if all rows are equally long). The id of PAD is 0."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)  # [b, s]
    if all(len(row) == longest for row in rows):
        return ids, None
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(longest, device=device)[None] < lengths[:, None]).long()  # [b, s]


@torch.inference_mode()
def predict_logits(model: TopicClassifier, rows: Sequence[list[int]], *, device: str = "cpu") -> Tensor:
    """Logits of tokenised documents: [documents, topics], on the CPU, in the order of the rows."""
    logits: Tensor = model.head(predict_features(model, rows, device=device).to(device))
    return logits.cpu()


@torch.inference_mode()
def predict_features(model: TopicClassifier, rows: Sequence[list[int]], *, device: str = "cpu") -> Tensor:
    """What the head sees of tokenised documents: [documents, h], on the CPU, in the order of the rows."""
    model.eval()
    found = torch.empty(len(rows), model.head.in_features)
    # Documents of like length together, long ones first: hardly any padding.
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    start = 0
    while start < len(order):
        size = max(1, BATCH_TOKENS[device] // max(1, len(rows[order[start]])))
        batch = order[start : start + size]
        start += size
        ids, mask = padded([rows[index] for index in batch], device=device)
        found[batch] = model.features(ids, mask).float().cpu()
    return found


def save_classifier(trained: Trained, folder: Path) -> None:
    """Weights, tokenizer, topics and settings into `folder`, which is not yet anybody's."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    trained.tokenizer.save(str(folder / TOKENIZER))
    (folder / TOPICS).write_text(json.dumps(trained.topics, ensure_ascii=False, indent=2), encoding="utf-8")
    settings = {
        "schema_version": SCHEMA_VERSION,
        "encoder": trained.model.encoder.config.to_dict(),
        "labels": trained.labels,
        "temperature": trained.temperature,
        "threshold": trained.threshold,
        "max_length": trained.max_length,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def load_classifier(folder: Path, *, device: str = "cpu") -> Trained:
    """What save_classifier wrote. Errors: DataError naming the file that is missing or not as expected."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        cure = "train it again"
        check_version(settings, understood=SCHEMA_VERSION, file=folder / SETTINGS, cure=cure, fault=DataError, absent=1)
        config = BertConfig.from_dict(settings["encoder"])
        model = TopicClassifier(config, num_topics=len(settings["labels"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        topics = read_topics(folder / TOPICS)
        return Trained(
            model.to(device).eval(), tokenizer, topics, tuple(settings["labels"]), float(settings["temperature"]),
            float(settings["threshold"]), int(settings["max_length"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
        raise DataError(
            f"{folder} is no topic classifier ({error}); name a folder that `syne data train-classifier` wrote"
        ) from error


def load_encoder(folder: Path, model: TopicClassifier) -> None:
    """Takes the encoder's weights from a BERT in transformers' format (bare, or with any head).

    Errors: ConfigError if the folder holds no such weights, or a tensor of another shape.
    """
    given = _safetensors(folder)
    ours = model.encoder.state_dict()
    prefix = "bert." if any(name.startswith("bert.") for name in given) else ""
    taken = {}
    for name, tensor in ours.items():
        source = given.get(prefix + name)
        if source is None or source.shape != tensor.shape:
            found = "nothing" if source is None else f"shape {tuple(source.shape)}"
            raise ConfigError(
                f"--init {folder}: {prefix + name} should have shape {tuple(tensor.shape)}; found {found}"
            )
        taken[name] = source
    model.encoder.load_state_dict(taken)


def read_init(folder: Path, *, max_length: int, num_layers: int | None = None) -> tuple[BertConfig, Tokenizer]:
    """Configuration and tokenizer of a BERT folder, of its first num_layers if given.

    Errors: ConfigError if there is none, or none with so many positions or layers.
    """
    from transformers import AutoTokenizer

    try:
        config = BertConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"--init {folder} is no BERT folder with a fast tokenizer: {error}") from error
    if max_length > config.max_position_embeddings:
        raise ConfigError(f"--max-length {max_length} exceeds the {config.max_position_embeddings} of --init {folder}")
    if tokenizer.token_to_id(PAD) != 0:
        raise ConfigError(f"--init {folder}: the id of {PAD} must be 0, it is {tokenizer.token_to_id(PAD)}")
    if num_layers is not None:
        if num_layers > config.num_hidden_layers:
            raise ConfigError(f"--init-layers {num_layers}: --init {folder} has {config.num_hidden_layers} layers")
        config.num_hidden_layers = num_layers
    return config, with_ends(tokenizer, max_length=max_length)


def _safetensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"--init {folder} holds no .safetensors file; save the model with save_pretrained")
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise ConfigError(f"--init {folder} cannot be read: {error}") from error


def label_of(probabilities: Sequence[float], labels: Sequence[str], *, threshold: float) -> tuple[str, float]:
    """(topic, its confidence): the most probable one, or OTHERS where that one is below the threshold."""
    best = max(range(len(labels)), key=lambda index: (probabilities[index], -index))
    confidence = probabilities[best]
    return (labels[best] if confidence >= threshold else OTHERS), confidence
