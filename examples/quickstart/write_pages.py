"""All pages of the quickstart's sources, whole, as en.jsonl (with code) and zh.jsonl: text for benchmarks.

python -m examples.quickstart.write_pages OUT      # fetches what the quickstart reads into OUT/assets
"""

import argparse
import json
from pathlib import Path

from examples.quickstart import assets
from examples.quickstart.sources import SOURCES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    assets.fetch(out / "assets")
    with (out / "en.jsonl").open("w", encoding="utf-8") as en, (out / "zh.jsonl").open("w", encoding="utf-8") as zh:
        for source in SOURCES:
            stream = zh if source.language == "zh" or source.topic.endswith("_zh") else en
            for page in source.pages(out / "assets"):
                if page.text.strip() and "\x00" not in page.text:
                    stream.write(json.dumps({"text": page.text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
