"""Names of languages, sources and topics: parts of source names and of file names."""

import re

from data_mixers.errors import ConfigError

# Letters and digits of any script, "_ . + -" and spaces inside; "__" joins labels in file names, "/" in source names.
_LABEL = re.compile(r"[^\W_](?:[\w.+ -]*(?:[^\W_]|\+))?")
MAX_LABEL_LENGTH = 60  # ours: four of them fit into a file name of 255 bytes in most scripts


def is_label(text: str) -> bool:
    """Whether a value of the data can be a topic."""
    return len(text) <= MAX_LABEL_LENGTH and "__" not in text and _LABEL.fullmatch(text) is not None


def check_label(text: str, *, option: str) -> None:
    """Errors: ConfigError naming the option."""
    if not is_label(text):
        raise ConfigError(
            f"{option} {text!r} cannot be part of a source name: use letters, digits and single _ . + - inside, "
            f"at most {MAX_LABEL_LENGTH} characters"
        )


def file_stem(source_name: str) -> str:
    """The file name of a source without folder and suffix, in Megatron's way: zh__web__law_text_document."""
    return source_name.replace("/", "__") + "_text_document"
