"""A server with OpenAI's interface that answers everything alike: answer_server.py HOST PORT LOG [HELD].

LOG gets a line a question: this node's name and the question. Where the pipe HELD is, a question with HOLD waits at it.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOG, HELD = Path(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None
TEXT = "[Problem]\nWhat is 1 + 1?\n[Solution]\n1 + 1 = 2"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "m"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        question = asked.splitlines()[-1]
        with LOG.open("a") as stream:
            stream.write(f"{os.uname().nodename} {question}\n")
        if "HOLD" in question and HELD is not None and HELD.exists():
            HELD.read_text()  # opening a pipe waits for its writer
        choice = {"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        self.reply({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}})

    def reply(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
