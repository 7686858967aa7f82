"""One command in a fork of the warm process, for a shell: with this process's output, folder, environment, exit code.

    python warm_client.py SOCKET -m tools ...
Imports of the standard library alone: it starts in hundredths of a second.
"""

import json
import os
import socket
import sys
from pathlib import Path

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    request = json.dumps({"arguments": sys.argv[2:], "env": dict(os.environ), "cwd": str(Path.cwd())}).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], [1, 2])
    connection.sendall(request)
    answers = connection.makefile("rb")
    answers.read(4)  # its process id
    code = answers.read(4)
sys.exit(int.from_bytes(code, "big", signed=True) & 0xFF if code else 137)
