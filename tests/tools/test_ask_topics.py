"""Labels from a server with OpenAI's interface: a real process, real HTTP, real faults."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from data_mixers.errors import ConfigError, DataError
from tests.openai_server import served
from tests.rows import read, write
from tools.cli import main
from tools.data import chat
from tools.data.ask_topics import AskOptions, ask_topics, parse_topic
from tools.data.topic_labels import read_labelled, read_topics

PAGES = {
    "law_and_policy a court": "law_and_policy",
    "law_and_policy contested ruling": "law_and_policy",
    "law_and_policy 429 busy": "law_and_policy",
    "medicine_and_health 500 broken": "medicine_and_health",
    "medicine_and_health chatter": "medicine_and_health",
    "medicine_and_health contested cure": "law_and_policy",
    "others hang": "others",
    "others a picnic": "others",
}


@dataclass(frozen=True)
class Server:
    url: str
    log: Path

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    log = tmp_path / "log.jsonl"
    with served(Path(__file__).with_name("openai_stub.py"), log) as url:
        yield Server(url, log)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "text": text, "given": label, "url": "u"} for i, (text, label) in enumerate(PAGES.items())]
    return write(tmp_path / "pages.jsonl", rows)


def test_faults_are_waited_out_and_the_agreement_is_what_a_hand_counts(
    server: Server, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    out = tmp_path / "out"
    code = main(
        ["data", "ask-topics", "--input", str(pages), "--url", server.url, "--model", "plain", "--model", "contrary",
         "--language", "en", "--gold-key", "given", "--out", str(out), "--timeout-seconds", "3", "--parallel", "4"]
    )  # fmt: skip
    assert code == 0
    rows = read(out / "labelled.jsonl.zst")
    assert [row["id"] for row in rows] == [str(i) for i in range(8)]
    assert [row["topic"] for row in rows] == [text.split()[0] for text in PAGES]  # a tie is the first model's
    assert [row["topic_confidence"] for row in rows] == [0.5 if "contested" in text else 1.0 for text in PAGES]
    assert all(row["url"] == "u" for row in rows)
    report = json.loads((out / "agreement.json").read_text())
    # given: 4 law, 2 medicine, 2 others; plain: 3, 3, 2, different on one of 8.
    pair = report["pairs"]["given and plain#0"]
    assert pair["agreement"] == pytest.approx(7 / 8)
    chance = (4 * 3 + 2 * 3 + 2 * 2) / 64
    assert pair["kappa"] == pytest.approx((7 / 8 - chance) / (1 - chance))
    # others: never doubted. medicine: 7 of 8; by chance 2/8 · 3/8 + 6/8 · 5/8 = 36/64.
    assert pair["kappa_by_topic"]["others"] == pytest.approx(1.0)
    assert pair["kappa_by_topic"]["medicine_and_health"] == pytest.approx((7 / 8 - 36 / 64) / (1 - 36 / 64))
    assert report["pairs"]["plain#0 and contrary#0"]["agreement"] == pytest.approx(6 / 8)
    asked = server.asked()
    assert {row["path"] for row in asked} == {"/v1/chat/completions"}
    assert {row["key"] for row in asked} == {"Bearer secret"}
    numbers = Counter((row["body"]["model"], row["text"]) for row in asked)
    faulty = ("429", "500", "hang", "chatter")
    assert all(n == (2 if any(word in text for word in faulty) else 1) for (_, text), n in numbers.items())
    names = asked[0]["body"]["response_format"]["json_schema"]["schema"]["properties"]["topic"]["enum"]
    assert names == list(read_topics(None)["en"])
    assert all("secret" not in file.read_text(errors="replace") for file in out.rglob("*") if file.is_file())


def options(server: Server, pages: Path, out: Path, **changes: Any) -> AskOptions:
    given = {"models": ("plain",), "language": "en", "timeout_seconds": 3.0} | changes
    return AskOptions(inputs=(str(pages),), url=server.url, out=out, **given)


def test_what_is_answered_is_not_asked_again(server: Server, pages: Path, tmp_path: Path) -> None:
    """Also after a line that was cut off by a crash, and with the labelled documents in the folder that is read."""
    rows = [json.loads(line) for line in pages.read_text().splitlines()]
    sample = write(tmp_path / "sample/pages.jsonl", rows[:4]).parent
    out = sample / "out"
    ask_topics(options(server, sample, out))
    kept = (out / "answers.jsonl").read_bytes()
    (out / "answers.jsonl").write_bytes(kept + b'{"id": "7", "ra')
    before = len(server.asked())
    done = {json.loads(line)["id"] for line in kept.decode().splitlines()}
    assert done == {"0", "1", "2", "3"}
    pages = write(sample / "pages.jsonl", rows).parent
    ask_topics(options(server, pages, out))
    again = [row["text"] for row in server.asked()[before:]]
    texts = list(PAGES)
    assert not {texts[int(number)] for number in done} & set(again)
    assert [row["topic"] for row in read(out / "labelled.jsonl.zst")] == [text.split()[0] for text in PAGES]
    # Passes are raters of their own: only the second is asked now.
    before = len(server.asked())
    report = ask_topics(options(server, pages, out, passes=2))
    assert len(server.asked()) == before + len(PAGES)
    assert report["pairs"]["plain#0 and plain#1"]["kappa"] == pytest.approx(1.0)


def test_an_answer_is_kept_for_the_words_that_were_asked(server: Server, tmp_path: Path) -> None:
    """Without ids of their own documents are named by file and place: another sample has the same names."""
    sample, out = tmp_path / "sample.jsonl", tmp_path / "out"
    topics = []
    for text in ("law_and_policy a court", "medicine_and_health a cure"):
        write(sample, [{"text": text}, {"text": "others a picnic"}])
        ask_topics(options(server, sample, out))
        topics.append([(row["id"], row["topic"]) for row in read(out / "labelled.jsonl.zst")])
    assert [of_sample[0] for of_sample in topics] == [
        ("sample.jsonl:0", "law_and_policy"), ("sample.jsonl:0", "medicine_and_health"),
    ]  # fmt: skip
    before = len(server.asked())
    prompt = {"system": "Be brief.", "user": "{topics}\nThe page:\n{text}", "again": "Once more."}
    (tmp_path / "prompt.json").write_text(json.dumps({"en": prompt}))
    ask_topics(options(server, sample, out, prompt=tmp_path / "prompt.json"))
    assert len(server.asked()) == before + 2  # another prompt is another question
    ask_topics(options(server, sample, out))
    assert len(server.asked()) == before + 2


def test_lines_that_are_no_documents_are_said_and_counted(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample = write(tmp_path / "sample.jsonl", [{"text": "others a picnic"}, {"body": "a"}, {"body": "b"}, {"text": 1}])
    ask_topics(options(server, sample, tmp_path / "out"))
    report = json.loads((tmp_path / "out/agreement.json").read_text())
    assert report["num_documents"] == 1
    assert report["lines_left_out"] == {"missing key text": 2, "text is not text": 1}
    assert "3 lines are no documents, so nobody is asked: missing key text (2)" in caplog.text
    with pytest.raises(DataError, match=r"no document in .*sample\.jsonl: missing key words \(4\)"):
        ask_topics(options(server, sample, tmp_path / "other", text_key="words"))


def test_a_document_that_no_topic_is_named_for_is_left_out_and_listed(server: Server, tmp_path: Path) -> None:
    """With a fixed seed the next call would meet the same answers, and no call would ever end."""
    rows = [
        {"id": str(n), "text": f"others {'babble' if n == 1 else 'a picnic'} {n}", "given": "others"} for n in range(4)
    ]
    pages = write(tmp_path / "pages.jsonl", rows)
    report = ask_topics(options(server, pages, tmp_path / "out", models=("plain", "contrary"), gold_key="given"))
    assert (report["num_documents"], report["without_answer"]) == (3, ["1"])
    assert report["pairs"]["given and plain#0"]["agreement"] == 1.0
    assert [row["id"] for row in read(tmp_path / "out/labelled.jsonl.zst")] == ["0", "2", "3"]
    before = len(server.asked())
    ask_topics(options(server, pages, tmp_path / "out"))
    assert {row["text"] for row in server.asked()[before:]} == {"others babble 1"}  # it may be the server's bad day
    write(pages, rows[1:2])
    with pytest.raises(DataError, match="no document got a topic from every rater"):
        ask_topics(options(server, pages, tmp_path / "one"))
    write(pages, [{"text": f"others babble {n}"} for n in range(40)])
    with pytest.raises(DataError, match=r"5 of 5 questions got no topic in 6 attempts.*look at the --prompt"):
        ask_topics(options(server, pages, tmp_path / "none", parallel=1))


def test_a_document_that_the_server_refuses_is_left_out_and_listed(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is longer than the model's context, say, must not end a call over thousands each time it is made."""
    rows = [{"id": str(n), "text": f"others {'refuse' if n == 1 else 'a picnic'} {n}"} for n in range(4)]
    pages = write(tmp_path / "pages.jsonl", rows)
    report = ask_topics(options(server, pages, tmp_path / "out"))
    assert (report["num_documents"], report["without_answer"]) == (3, ["1"])
    assert "document 1, which is left out, as its server refuses it: " in caplog.text
    assert "response_format is unknown here" in caplog.text
    before = len(server.asked())
    assert ask_topics(options(server, pages, tmp_path / "out")) == report
    assert [row["text"] for row in server.asked()[before:]] == ["others refuse 1"]
    write(pages, [{"text": f"others refuse {n}"} for n in range(40)])
    with pytest.raises(DataError, match=r"5 of 5 questions got no topic.* refuses it: .* answers 400.*--prompt"):
        ask_topics(options(server, pages, tmp_path / "none", parallel=1))


def test_an_error_under_status_200_is_no_answer_of_the_model(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of the document, or of the prompt; when the server is well again the same call asks on."""
    monkeypatch.setattr(chat, "FIRST_WAIT_SECONDS", 0.0)
    pages = write(tmp_path / "pages.jsonl", [{"text": "others a picnic"}, {"text": "others gateway"}])
    with pytest.raises(
        DataError, match=r"gave up after 6 attempts \(what is no model's answer: .*Provider returned error"
    ):
        ask_topics(options(server, pages, tmp_path / "out"))
    assert ask_topics(options(server, pages, tmp_path / "out"))["num_documents"] == 2


@pytest.mark.parametrize(
    "shape",
    [
        lambda error: {"error": error},
        lambda error: {"error": error, "choices": None},
        lambda error: {"error": error, "choices": []},
        lambda error: {"choices": [{"error": error, "message": {"role": "assistant", "content": ""}}]},
    ],
)
def test_an_error_under_status_200_counts_as_its_code_says(
    shape: Callable[[object], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that is too long must not end every call, as a busy gateway may; neither passes for a bad prompt."""
    monkeypatch.setattr(chat, "FIRST_WAIT_SECONDS", 0.0)

    def asked(error: object) -> tuple[str | None, str]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=shape(error)))
        with httpx.Client(base_url="http://gateway/v1", transport=transport) as client:
            return chat.post(client, {}, 0, threading.Event())

    for error in ("busy", {"message": "busy"}, {"message": "busy", "code": 429}, {"message": "busy", "code": "502"}):
        reply, fault = asked(error)
        assert reply is None and "what is no model's answer" in fault and "busy" in fault
    with pytest.raises(chat.RefusedError, match=r"answers 400: .*too long"):
        asked({"message": "too long", "code": 400})
    with pytest.raises(DataError, match=r"answers 401 \(set OPENAI_API_KEY") as caught:
        asked({"message": "who are you", "code": 401})
    assert not isinstance(caught.value, chat.RefusedError)


def test_a_line_of_the_answers_that_is_none_is_named(server: Server, pages: Path, tmp_path: Path) -> None:
    ask_topics(options(server, pages, tmp_path / "out"))
    kept = (tmp_path / "out/answers.jsonl").read_bytes()
    for damage in (b"\0" * 60, b"[1]", b'{"id": "1", "rater": "plain#0"}', b'{"id": [], "rater": "r", "topic": "t"}'):
        (tmp_path / "out/answers.jsonl").write_bytes(kept + damage + b"\n")
        with pytest.raises(DataError, match=r"answers\.jsonl, line 9, is no answer .*; remove the line and run again"):
            ask_topics(options(server, pages, tmp_path / "out"))


def test_a_call_that_has_ended_with_documents_left_out_ends_again(server: Server, tmp_path: Path) -> None:
    """It asks nothing but what had no answer; these are few of all, whatever they are of what is asked now."""
    rows = [{"text": f"others {'a picnic' if n < 50 else 'babble'} {n}"} for n in range(55)]
    pages = write(tmp_path / "pages.jsonl", rows)
    report = ask_topics(options(server, pages, tmp_path / "out", parallel=1))
    assert (report["num_documents"], len(report["without_answer"])) == (50, 5)
    assert ask_topics(options(server, pages, tmp_path / "out", parallel=1)) == report


def test_what_is_labelled_can_be_learnt_from(server: Server, tmp_path: Path) -> None:
    rows = [
        {"text": "others a picnic"}, {"text": "law_and_policy a court", "language": "zh", "source": "courts"},
        {"text": "others a walk", "language": None, "source": ""},
    ]  # fmt: skip
    (tmp_path / "crawl").mkdir()
    pages = write(tmp_path / "crawl" / "a.jsonl", rows)
    ask_topics(options(server, pages, tmp_path / "out"))
    found, _ = read_labelled([str(tmp_path / "out/labelled.jsonl.zst")], topics=read_topics(None), text_key="text")
    added = ("en", "others", "crawl")
    wanted = [added, ("zh", "law_and_policy", "courts"), added]  # what a document says itself stays
    assert [(d.language, d.topic, d.source) for d in found] == wanted


def test_a_key_is_sent_without_its_line_end_and_one_that_is_none_is_not_shown(
    server: Server, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret\r\n")
    ask_topics(options(server, pages, tmp_path / "out"))
    assert {row["key"] for row in server.asked()} == {"Bearer secret"}
    for key in ("secret\nsecret", "sécret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters that no key has") as caught:
            ask_topics(options(server, pages, tmp_path / "other"))
        assert "cret" not in str(caught.value)


def test_what_ask_topics_refuses(pages: Path, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--language fr has no topics"):
        ask_topics(options(server, pages, tmp_path / "a", language="fr"))
    (tmp_path / "prompt.json").write_text('{"en": {"system": "", "user": "no place", "again": ""}}')
    with pytest.raises(ConfigError, match=r"prompt\.json, language en"):
        ask_topics(options(server, pages, tmp_path / "b", prompt=tmp_path / "prompt.json"))
    twice = write(tmp_path / "twice.jsonl", [{"id": "1", "text": "others a"}, {"id": "1", "text": "others b"}])
    with pytest.raises(DataError, match=r"1 ids occur more than once, .*give each document its own"):
        ask_topics(options(server, twice, tmp_path / "c"))
    with pytest.raises(ConfigError, match=r"--input .*e/labelled\.jsonl\.zst is what this call writes; choose another"):
        ask_topics(options(server, write(tmp_path / "e/labelled.jsonl.zst", [{"text": "others a"}]), tmp_path / "e"))
    with pytest.raises(DataError, match="a document has no label there"):
        ask_topics(options(server, pages, tmp_path / "d", gold_key="nothing"))
    with pytest.raises(ConfigError, match="--model m is given twice; --passes 2"):
        ask_topics(options(server, pages, tmp_path / "f", models=("m", "n", "m")))
    titled = write(tmp_path / "titled.jsonl", [{"text": "others a", "given": "Others"}])
    with pytest.raises(DataError, match=r"--gold-key given: 'Others' \(titled\.jsonl:0\) is no topic; known: math"):
        ask_topics(options(server, titled, tmp_path / "e", gold_key="given"))
    with pytest.raises(ConfigError, match="--url 'localhost:8000/v1' is no URL; write http://host:port/v1"):
        ask_topics(replace(options(server, pages, tmp_path / "g"), url="localhost:8000/v1"))
    assert not server.asked()  # what is refused costs nothing


@pytest.mark.parametrize(
    ("reply", "topic"),
    [
        ('{"topic": "law_and_policy"}', "law_and_policy"),
        ("Law and Policy.", "law_and_policy"),
        ('```json\n{"topic": "Others"}\n```', "others"),
        ('{"topic": "Astrology"}', None),
        ('{"topic": 3}', None),
        ('{"subject": "others"}', None),
        ("It is law_and_policy or others", None),
        ("{broken}", None),
        ("", None),
    ],
)
def test_only_a_name_of_the_list_is_an_answer(reply: str, topic: str | None) -> None:
    assert parse_topic(reply, read_topics(None)["en"]) == topic


def test_a_chinese_title_is_an_answer() -> None:
    assert parse_topic("法律与政策。", read_topics(None)["zh"]) == "law_and_policy"
