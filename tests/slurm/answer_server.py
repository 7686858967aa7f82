"""A server with OpenAI's interface that answers everything alike: answer_server.py HOST PORT LOG [HELD].

LOG gets a line a question: this node's name and the question. Where the pipe HELD is, a question with HOLD waits at it.
"""

import os
import sys
from pathlib import Path

from tests.openai_server import Handler, serve

LOG, HELD = Path(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None


class Alike(Handler):
    def do_POST(self) -> None:
        question = self.asked()["messages"][-1]["content"].splitlines()[-1]
        with LOG.open("a") as stream:
            stream.write(f"{os.uname().nodename} {question}\n")
        if "HOLD" in question and HELD is not None and HELD.exists():
            HELD.read_text()  # opening a pipe waits for its writer
        self.say("[Problem]\nWhat is 1 + 1?\n[Solution]\n1 + 1 = 2")


if __name__ == "__main__":
    serve(Alike, sys.argv[1], int(sys.argv[2]))
