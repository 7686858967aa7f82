"""A server with OpenAI's interface over a real model, as a process: model_server.py HF_DIR PORT [LOG].

Answers are made one after the other by transformers.
`SYNE_TEST_SECTIONS` set: what the model said comes as hex in two sections; random weights never write any.
"""

import json
import os
import sys
import threading
from pathlib import Path

from tests.openai_server import Handler, serve
from tools.synthesis.text_generator import LocalGenerator

MODEL = LocalGenerator(Path(sys.argv[1]))
LOG = Path(sys.argv[3]) if len(sys.argv) > 3 else None
lock = threading.Lock()


class Model(Handler):
    def do_POST(self) -> None:
        body = self.asked()
        sampling = {key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed")}
        with lock:
            answer = MODEL.answer(body["messages"], sampling)
            if LOG is not None:
                with LOG.open("a") as stream:
                    stream.write(json.dumps({"seed": body["seed"], "text": answer.text}) + "\n")
        text = answer.text
        if os.environ.get("SYNE_TEST_SECTIONS"):
            text = f"[Problem]\n{body['seed']}\n[Solution]\n{text.encode().hex()}"
        self.say(text, finish_reason=answer.finish_reason, usage=answer.usage)


if __name__ == "__main__":
    serve(Model, port=int(sys.argv[2]))
