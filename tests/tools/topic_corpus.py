"""Small labelled documents in two languages that a few words tell apart."""

import random

WORDS = {
    ("en", "law_and_policy"): ["court", "statute", "judge", "appeal", "verdict", "clause", "tribunal", "plaintiff"],
    ("en", "medicine_and_health"): ["patient", "surgery", "dose", "symptom", "fever", "clinic", "vaccine", "kidney"],
    ("en", "others"): ["recipe", "holiday", "football", "movie", "garden", "guitar", "picnic", "puppy"],
    ("zh", "law_and_policy"): ["法院", "条例", "判决", "上诉", "合同", "原告", "律师", "刑罚"],
    ("zh", "medicine_and_health"): ["患者", "手术", "剂量", "症状", "发烧", "疫苗", "肾脏", "诊断"],
}
FILLER = {
    "en": ["the", "of", "and", "with", "some", "very", "new", "old", "long"],
    "zh": ["的", "和", "在", "很", "新", "旧", "长", "有"],
}


def documents(*, sources: tuple[str, ...], count: int, seed: int = 0) -> list[dict[str, str]]:
    """count documents of each topic and source."""
    chance = random.Random(seed)
    rows = []
    for (language, topic), words in WORDS.items():
        for source in sources:
            for number in range(count):
                chosen = chance.choices(words, k=4) + chance.choices(FILLER[language], k=chance.randint(2, 30))
                chance.shuffle(chosen)
                text = (" " if language == "en" else "").join(chosen)
                rows.append(
                    {"id": f"{language}-{topic}-{source}-{number}", "text": text, "language": language, "topic": topic,
                     "source": source}
                )  # fmt: skip
    return rows
