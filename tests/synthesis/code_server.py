"""A server with OpenAI's interface that answers each question as a file says: code_server.py ANSWERS.

ANSWERS: JSON lines {"part": text of the question, "answer": completion}.
"""

import sys
from pathlib import Path

from tests.openai_server import Handler, serve
from tests.rows import read

ROWS = read(Path(sys.argv[1]))


class Answers(Handler):
    def do_POST(self) -> None:
        asked = self.asked()["messages"][-1]["content"]
        self.say(next(row["answer"] for row in ROWS if row["part"] in asked))


if __name__ == "__main__":
    serve(Answers)
