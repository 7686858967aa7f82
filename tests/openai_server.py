"""Servers with OpenAI's interface, as processes of their own: what they share, and how a test has one beside it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
USAGE = {"prompt_tokens": 9, "completion_tokens": 5}


class Handler(BaseHTTPRequestHandler):
    """A server's own is its do_POST."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "model"}]})

    def asked(self) -> dict[str, Any]:
        """The body of the request."""
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return body

    def say(self, text: str, *, finish_reason: str = "stop", usage: dict[str, int] | None = None) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        self.reply({"object": "chat.completion", "choices": [choice], "usage": usage or USAGE})

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # the client was killed
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(handler: type[Handler], host: str = "127.0.0.1", port: int = 0) -> None:
    """Until the process ends; the port, of 0 a free one, is the first line of the output."""
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[str]:
    """The URL of a server that runs meanwhile: a script with its arguments."""
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.kill()
        server.wait()
