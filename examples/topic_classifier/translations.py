"""Translated messages out of the files that programs keep them in: gettext's .mo and .po, Qt's .qm and .rcc.

Qt's formats are those of QTranslator (qtranslator.cpp) and rcc (rcc.cpp), big-endian.
"""

import gettext
import json
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_mixers.errors import DataError

QM_MAGIC = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
QM_HASHES, QM_MESSAGES = 0x42, 0x69  # sections
QM_END, QM_TRANSLATION, QM_SOURCE, QM_CONTEXT = 1, 3, 6, 7  # fields of a message
QM_EMPTY = 0xFFFFFFFF
STRING = r'"((?:[^"\\]|\\.)*)"'


@dataclass(frozen=True)
class Message:
    context: str
    original: str
    translation: str


def of_mo(file: Path) -> Iterator[Message]:
    """Messages without a plural."""
    with file.open("rb") as stream:
        catalogue: dict[object, str] = vars(gettext.GNUTranslations(stream))["_catalog"]
    for original, translation in catalogue.items():
        if isinstance(original, str) and original:
            *context, text = original.split("\x04")
            yield Message("".join(context), text, translation)


def of_po(content: str) -> Iterator[Message]:
    """Messages without a plural, but for those that are marked as unsure."""
    for block in re.split(r"\n\s*\n", content):
        if re.search(r"^#,.*\bfuzzy\b", block, flags=re.M):
            continue
        fields = {
            name: "".join(json.loads(f'"{part}"') for part in re.findall(STRING, strings))
            for name, strings in re.findall(rf"^(msgctxt|msgid|msgstr)((?:\s+{STRING[:1]}.*)+)", block, flags=re.M)
        }
        if fields.get("msgid") and fields.get("msgstr"):
            yield Message(fields.get("msgctxt", ""), fields["msgid"], fields["msgstr"])


def of_qm(file: Path) -> Iterator[Message]:
    """Errors: DataError if it is no .qm file."""
    content = file.read_bytes()
    if not content.startswith(QM_MAGIC):
        raise DataError(f"{file}: not a translation of Qt's")
    sections, at = {}, len(QM_MAGIC)
    while at < len(content):
        tag, size = struct.unpack_from(">BI", content, at)
        sections[tag] = content[at + 5 : at + 5 + size]
        at += 5 + size
    messages = sections[QM_MESSAGES]
    for _, at in struct.iter_unpack(">II", sections[QM_HASHES]):
        fields: dict[int, bytes] = {}
        while (tag := messages[at]) != QM_END:
            (size,) = struct.unpack_from(">I", messages, at + 1)
            size = 0 if size == QM_EMPTY else size
            fields[tag] = messages[at + 5 : at + 5 + size]
            at += 5 + size
        yield Message(
            fields.get(QM_CONTEXT, b"").decode(), fields.get(QM_SOURCE, b"").decode(),
            fields.get(QM_TRANSLATION, b"").decode("utf-16-be"),
        )  # fmt: skip


def originals_of_rcc(file: Path) -> set[str]:
    """What the QML files in it have translated: the strings in qsTr(…). Errors: DataError if it is no .rcc file."""
    content = file.read_bytes()
    if content[:4] != b"qres":
        raise DataError(f"{file}: not resources of Qt's")
    _, tree, at, names = struct.unpack_from(">4I", content, 4)
    end = min(place for place in (tree, names, len(content)) if place > at)
    found: set[str] = set()
    while at + 4 <= end:
        (size,) = struct.unpack_from(">I", content, at)
        piece = content[at + 4 : at + 4 + size]
        at += 4 + size
        with suppress(zlib.error):  # a small one is kept as it is
            piece = zlib.decompress(piece[4:])
        if b"qsTr(" in piece:
            for strings in re.findall(rf"qsTr\(((?:\s*{STRING}\s*\+?)+)\)", piece.decode("utf-8", "replace")):
                found.add("".join(json.loads(f'"{part}"') for part in re.findall(STRING, strings[0])))
    return found
