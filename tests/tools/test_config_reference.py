"""docs/config.md says what schema.py says."""

from megatron_synE.config.explain import all_keys
from tools.config_reference import PAGE, render_reference


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_reference(), "run: python -m tools.config_reference --write"


def test_every_key_has_a_row() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for key in all_keys():
        assert f"| `{key.rpartition('.')[2]}` |" in page, key
