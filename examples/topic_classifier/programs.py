"""Chinese text of programs whose field is a topic: what their translations say in sentences, not on buttons."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from examples.topic_classifier.english import BIOCHEM, ECONOMY, HISTORY, MEDICINE, OTHERS, Labelled
from examples.topic_classifier.translations import Message, of_mo, of_po, of_qm, originals_of_rcc

NAMES = (
    "children_atlas", "nations", "chemistry_program", "hospital_program", "bookkeeping", "household_accounts",
)  # fmt: skip
"""The sources here."""
FEWEST_CHARACTERS = 12  # Chinese ones, of a sentence: a button has fewer (ours)
ABOUT_THE_PROGRAM = re.compile(
    r"\b(files?|click|buttons?|dialogs?|windows?|menus?|toolbar|tab|widgets?|import\w*|export\w*|databases?|CSV|QIF|OFX"
    r"|XML|HTML|CSS|SQL|plug-?ins?|mouse|keys?|shortcuts?|fonts?|colou?rs?|folders?|director(y|ies)|passwords?|scripts?"
    r"|installed|stylesheet|decimal|characters?|columns?|password|software|program|format\w*|wizard|assistant|icons?)\b",
    flags=re.I,
)
"""Of the English original: text on how the program is used, whatever its field."""
ABOUT_THE_GAME = re.compile(r"\bclick\b", flags=re.I)  # colours, keys and columns are the animals' and monuments'
ABOUT_MONEY = re.compile(
    r"\b(invest\w*|stocks?|tax\w*|loans?|interest|invoices?|bills?|payments?|bonds?|funds?|budget\w*|prices?|currenc\w+"
    r"|exchange|equity|assets?|liabilit\w+|income|expenses?|bank\w*|credit|debit|balances?|deposits?|mortgage|capital"
    r"|dividends?|depreciation|customers?|vendors?|shares?|payees?|accounts?|money|costs?|profit|loss|securit\w+)\b",
    flags=re.I,
)
NOT_MEDICINE = re.compile(r"party|address|federation|country|gnuhealth\.du|internal_user|insurance|timezone")
"""Fields of the hospital program, by their names."""
ATLAS = {
    "explore_farm_animals": BIOCHEM, "explore_world_animals": BIOCHEM, "explore_monuments": HISTORY,
    "explore_world_music": OTHERS,
}  # fmt: skip
"""Activities of GCompris that tell of something -> topic."""
HOSPITAL_MODULES = ("health", "health_dentistry", "health_gyneco", "health_icu", "health_lifestyle")


def children_atlas(assets: Path) -> Iterator[Labelled]:
    """GCompris on animals, monuments and music of the world, from the Chinese of Taiwan, in simplified characters."""
    folder = assets / "debian/usr/share/gcompris-qt"
    to_simplified = _simplified_characters(assets)
    board = [m for m in of_qm(folder / "translations/gcompris_zh_TW.qm") if m.context.startswith("board")]
    for activity, topic in ATLAS.items():
        told = originals_of_rcc(folder / f"rcc/{activity}.rcc")
        for text in _sentences(m for m in board if m.original in told and not ABOUT_THE_GAME.search(m.original)):
            yield topic, text.translate(to_simplified)


def nations(assets: Path) -> Iterator[Labelled]:
    """What Freeciv tells of the nations that can be played."""
    for text in _sentences(of_mo(_catalogue(assets, "freeciv-nations"))):
        yield HISTORY, text


def chemistry_program(assets: Path) -> Iterator[Labelled]:
    """Kalzium: names of elements, tools of a laboratory, terms of chemistry."""
    for text in _sentences(_not_about_the_program(of_mo(_catalogue(assets, "kalzium")))):
        yield BIOCHEM, text


def hospital_program(assets: Path) -> Iterator[Labelled]:
    """GNU Health: what is to be written of a patient, and descriptions of groups of diseases and of drugs' forms."""
    for module in HOSPITAL_MODULES:
        file = assets / f"python/trytond/modules/{module}/locale/zh_CN.po"
        messages = of_po(file.read_text("utf-8"))
        asked = (
            m for m in messages
            if m.context.startswith(("help:", "model:gnuhealth.")) and not NOT_MEDICINE.search(m.context)
        )  # fmt: skip
        for text in _sentences(_not_about_the_program(asked)):
            yield MEDICINE, text


def _money_program(assets: Path, *, name: str) -> Iterator[Labelled]:
    about_money = (m for m in of_mo(_catalogue(assets, name)) if len(set(ABOUT_MONEY.findall(m.original.lower()))) > 1)
    for text in _sentences(_not_about_the_program(about_money)):
        yield ECONOMY, text


bookkeeping = partial(_money_program, name="gnucash")
household_accounts = partial(_money_program, name="kmymoney")


def _catalogue(assets: Path, name: str) -> Path:
    return assets / f"debian/usr/share/locale/zh_CN/LC_MESSAGES/{name}.mo"


def _not_about_the_program(messages: Iterable[Message]) -> Iterator[Message]:
    return (m for m in messages if not ABOUT_THE_PROGRAM.search(m.original))


def _sentences(messages: Iterable[Message]) -> Iterator[str]:
    """Their translations without mark-up, where they are long enough."""
    for message in messages:
        text = re.sub(r"<[^>]*>|&\w+;|%\(\w+\)s|%[0-9]?\$?[0-9a-z]*", " ", message.translation)
        text = " ".join(text.split())
        if sum("\u4e00" <= character <= "\u9fff" for character in text) >= FEWEST_CHARACTERS:
            yield text


def _simplified_characters(assets: Path) -> dict[int, str]:
    """Traditional character -> simplified, of jionlp's table."""
    lines = (assets / "python/jionlp/dictionary/tra2sim_char.txt").read_text("utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if "\t" in line)
    return {ord(traditional): simplified for traditional, simplified in pairs}
