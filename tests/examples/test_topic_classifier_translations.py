"""Translated messages out of files laid out here byte by byte, and what of them is labelled text."""

import struct
import zlib
from pathlib import Path

import pytest

from data_mixers.errors import DataError
from examples.topic_classifier import programs
from examples.topic_classifier.translations import QM_MAGIC, Message, of_mo, of_po, of_qm, originals_of_rcc


def mo(file: Path, messages: dict[str, str]) -> Path:
    """GNU gettext's layout: magic, version, count, places of two tables of (size, place), hash table of none."""
    originals, translations = ([text.encode() for text in some] for some in (messages, messages.values()))
    count = len(messages)
    at = 28 + 16 * count
    tables, strings = b"", b""
    for text in (*originals, *translations):
        tables += struct.pack("<2I", len(text), at + len(strings))
        strings += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, at)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(head + tables + strings)
    return file


def qm(file: Path, messages: list[tuple[str, str, str]]) -> Path:
    """Qt's layout: sections of tag and size; a hash and a place a message; its fields of tag and size, then tag 1."""
    hashes, body = b"", b""
    for context, original, translation in messages:
        hashes += struct.pack(">2I", 0, len(body))
        for tag, field in ((3, translation.encode("utf-16-be")), (6, original.encode()), (7, context.encode())):
            body += struct.pack(">BI", tag, len(field)) + field
        body += struct.pack(">BI", 8, 0xFFFFFFFF) + b"\x01"  # no comment
    file.parent.mkdir(parents=True, exist_ok=True)
    sections = b"".join(struct.pack(">BI", tag, len(part)) + part for tag, part in ((0x42, hashes), (0x69, body)))
    file.write_bytes(QM_MAGIC + sections)
    return file


def rcc(file: Path, pieces: list[bytes]) -> Path:
    """Magic, version, places of tree, pieces and names; a piece is its size and itself; then the names."""
    body = b"".join(struct.pack(">I", len(piece)) + piece for piece in pieces)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"qres" + struct.pack(">4I", 3, 24 + len(body), 24, 20 + len(body)) + b"\0" * 4 + body + b"names")
    return file


def packed(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + zlib.compress(text.encode())


def test_gettexts_files_give_their_messages(tmp_path: Path) -> None:
    given = {"": "Content-Type: text/plain; charset=UTF-8\n", "a cat": "一只猫", "menu\x04open": "打开"}
    found = list(of_mo(mo(tmp_path / "x.mo", given)))
    assert found == [Message("", "a cat", "一只猫"), Message("menu", "open", "打开")]
    po = (
        'msgid ""\nmsgstr "Content-Type: text/plain\\n"\n\n#: a.py:1\nmsgctxt "help:x"\nmsgid "two\\n"\n"lines"\n'
        'msgstr ""\n"两\\n"\n"行"\n\n#, fuzzy\nmsgid "unsure"\nmsgstr "不"\n\nmsgid "none"\nmsgstr ""\n\n'
        '#~ msgid "old"\n#~ msgstr "旧"\n'
    )
    assert list(of_po(po)) == [Message("help:x", "two\nlines", "两\n行")]


def test_qts_files_give_their_messages_and_what_an_activity_says(tmp_path: Path) -> None:
    given = [("board1", "The pig", "豬"), ("Menu", 'Say "hi"', "說「嗨」")]
    found = list(of_qm(qm(tmp_path / "x.qm", given)))
    assert found == [Message(*fields) for fields in given]
    pieces = [b"\x89PNG no text", packed('x: qsTr("The pig")\ny: qsTr("in " +\n  "two \\"parts\\"")'), b'qsTr("small")']
    assert originals_of_rcc(rcc(tmp_path / "x.rcc", pieces)) == {"The pig", 'in two "parts"', "small"}
    other = tmp_path / "x.txt"
    other.write_text("something else")
    with pytest.raises(DataError, match=r"x\.txt: not a translation of Qt's"):
        next(of_qm(other))
    with pytest.raises(DataError, match=r"x\.txt: not resources of Qt's"):
        originals_of_rcc(other)


def test_sentences_of_a_programs_field_are_labelled_and_its_buttons_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "debian/usr/share"
    loan = "输入此贷款在上一张对账单上的期末余额。"
    messages = {
        "": "Content-Type: text/plain; charset=UTF-8\n", "Enter the balance of this loan": f"<p>{loan}</p>",
        "Balance of the loan": "贷款余额", "Import the balance of this loan from a file": f"从文件中{loan}",
        "Show a greeting when the day begins": "在一天开始的时候向用户显示一句问候语。",
    }  # fmt: skip
    mo(folder / "locale/zh_CN/LC_MESSAGES/kmymoney.mo", messages)
    assert list(programs.household_accounts(tmp_path)) == [("economics_and_business", loan)]
    table = tmp_path / "python/jionlp/dictionary/tra2sim_char.txt"
    table.parent.mkdir(parents=True)
    table.write_text("豬\t猪\n體\t体\n溫\t温\n為\t为\n裡\t里\n滾\t滚\n塔\t塔\n個\t个\n", encoding="utf-8")
    pig, click = "豬在泥巴裡打滾，主要是為了控制體溫。", "點擊這個動物，看看牠住在什麼地方。"
    qm(
        folder / "gcompris-qt/translations/gcompris_zh_TW.qm",
        [("board1", "Pigs wallow", pig), ("board1", "Click it", click), ("ActivityInfo", "Learn", pig)],
    )
    for activity in programs.ATLAS:
        told = 'qsTr("Pigs wallow") qsTr("Click it") qsTr("Learn")' if activity == "explore_farm_animals" else ""
        rcc(folder / f"gcompris-qt/rcc/{activity}.rcc", [packed(told)])
    expected = "猪在泥巴里打滚，主要是为了控制体温。"
    assert list(programs.children_atlas(tmp_path)) == [("biology_and_chemistry", expected)]
