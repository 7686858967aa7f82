"""The group `syne data` with all its commands, in the order of the work."""

from tools.data import commands_text, commands_topics, commands_tokens  # isort: skip
from tools.data import commands_scores  # isort: skip  # the order here is the order in --help
from tools.data.app import data_app

__all__ = ["commands_scores", "commands_text", "commands_tokens", "commands_topics", "data_app"]
