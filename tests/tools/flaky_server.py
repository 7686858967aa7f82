"""An HTTP server as a process of its own: files with Range, a hub's listings, and faults that are told beforehand.

python flaky_server.py FOLDER: FOLDER/files is served, FOLDER/faults.json says which faults a path's next requests meet,
FOLDER/requests.jsonl tells what was asked. The port is the first line of the output.
"""

import json
import sys
import time
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = Path(sys.argv[1])
ENDLESS = 1 << 50
faults: dict[str, list[str]] = json.loads((FOLDER / "faults.json").read_text())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        asked = {"path": path, "range": self.headers.get("Range"), "authorization": self.headers.get("Authorization")}
        with (FOLDER / "requests.jsonl").open("a") as stream:
            stream.write(json.dumps(asked) + "\n")
        fault = faults[path].pop(0) if faults.get(path) else ""
        while fault.startswith("meanwhile ") and not (FOLDER / "begun").exists():
            time.sleep(0.01)
        fault = fault.removeprefix("meanwhile ")
        status, _, seconds = fault.partition(" ")
        if status.isdigit():
            (FOLDER / "begun").touch()
            return self.answer(int(status), b"busy", {"Retry-After": seconds or "0"})
        if fault.startswith("to "):
            return self.answer(302, b"", {"Location": fault[3:]})
        file = FOLDER / "files" / path
        if not file.is_file():
            return self.answer(404, b"no such file")
        content = file.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        tag = f'"{len(content)}-{content[:1].hex()}"'
        headers = {"ETag": tag}
        if (
            FOLDER / "weak"
        ).exists():  # as servers that compress on the way have it: the date alone tells versions apart
            tag = formatdate(file.stat().st_mtime, usegmt=True)
            headers = {"ETag": 'W/"1"', "Last-Modified": tag}
        if self.headers.get("If-Range") not in (None, tag):
            start = 0
        if start >= len(content) > 0:
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        link = file.with_name(f"{file.name}.link")
        if link.exists():
            headers["Link"] = link.read_text()
        if start and fault != "no range":
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], headers, fault)
        return self.answer(200, content, headers, fault)

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        length = ENDLESS if fault == "endless" else len(content) + (5 if fault == "long" else 0)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault.startswith("cut "):
            self.wfile.write(content[: int(fault[4:])])
            self.close_connection = True
        elif fault == "stall":  # half of it, and then nothing until the client is gone
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            (FOLDER / "stalled").touch()
            time.sleep(3600)
        elif fault == "endless":  # as announced: more than anybody waits for
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(content)
                    (FOLDER / "begun").touch()
                    time.sleep(0.01)
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
