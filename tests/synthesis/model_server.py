"""A server with OpenAI's interface over a real model, as a process: model_server.py HF_DIR PORT [LOG].

The port is the first line of the output (0: a free one). Answers are made one after the other by transformers.
`SYNE_TEST_SECTIONS` set: what the model said comes as hex in two sections; random weights never write any.
"""

import json
import os
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools.synthesis.text_generator import LocalGenerator

MODEL = LocalGenerator(Path(sys.argv[1]))
LOG = Path(sys.argv[3]) if len(sys.argv) > 3 else None
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sampling = {key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed")}
        with lock:
            answer = MODEL.answer(body["messages"], sampling)
            if LOG is not None:
                with LOG.open("a") as stream:
                    stream.write(json.dumps({"seed": body["seed"], "text": answer.text}) + "\n")
        text = answer.text
        if os.environ.get("SYNE_TEST_SECTIONS"):
            text = f"[Problem]\n{body['seed']}\n[Solution]\n{text.encode().hex()}"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": answer.finish_reason}
        self.reply({"object": "chat.completion", "choices": [choice], "usage": answer.usage})

    def reply(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # the client was killed
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
