"""Language identification: of real sentences, with its score as a limit, and only languages that it gives."""

from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from tests.rows import write
from tools.data.clean import CleanOptions, clean
from tools.data.rules import LanguageRule, identify_language, judge_language


def test_language_of_real_sentences() -> None:
    sentences = {
        "zh": "民法典规定，家庭成员应当敬老爱幼，互相帮助，维护平等、和睦、文明的婚姻家庭关系。",
        "en": "Romance of the Three Kingdoms is a historical novel attributed to Luo Guanzhong.",
        "de": "Das Wetter ist heute schön, deshalb gehen wir am Nachmittag im Wald spazieren.",
        "ja": "日本国民は、正当に選挙された国会における代表者を通じて行動する。",
    }
    for language, sentence in sentences.items():
        found, score = identify_language(sentence)
        assert (found, score > 0.65) == (language, True)


def test_a_language_that_no_text_could_be_of_is_refused(tmp_path: Path) -> None:
    """The authors' buckets are named cn_…; with that as the language every document would be dropped."""
    pages = write(tmp_path / "a.jsonl", [{"text": "民法典"}])
    for languages in (("cn",), ("zh", "zh-CN")):
        with pytest.raises(ConfigError, match=rf"--language {languages[-1]} is none of the 176 codes .*ISO 639"):
            clean(CleanOptions(inputs=(str(pages),), out=tmp_path / "out", languages=languages))
    assert not (tmp_path / "out").exists()


def test_a_language_that_is_not_sure_enough_is_dropped() -> None:
    text = "The court held that the contract was valid. 合同自成立时生效，双方应当履行。"
    language, score = identify_language(text)
    assert 0.01 < score < 0.99
    for limit, is_kept in ((score - 0.01, True), (score + 0.01, False)):
        verdict = judge_language(text, (language,), LanguageRule(min_score=limit, source="test"))
        assert (verdict is None) == is_kept
