"""The sandbox's walls one by one: namespaces, limits, secrets, links, an end together with who started it."""

import json
import os
import resource
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.synthesis.test_sandbox import QUICK, ROOT, command_lines
from tools.synthesis import sandbox
from tools.synthesis.sandbox import Sandbox
from tools.synthesis.sandbox_process import Limits

pytestmark = pytest.mark.bubblewrap


def test_every_namespace_is_its_own_and_so_is_the_session(box: Sandbox) -> None:
    names = ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup")
    program = (
        f"import os, socket\nprint(*[os.readlink('/proc/self/ns/' + name) for name in {names}])\n"
        "print(os.getsid(0) > 0, socket.gethostname())"
    )
    found, session = box.run(program, limits=QUICK).stdout.splitlines()
    assert not set(found.split()) & {str(Path(f"/proc/self/ns/{name}").readlink()) for name in names}
    assert session == "True sandbox"


def test_every_limit_holds_inside(box: Sandbox) -> None:
    program = "import resource\nprint([resource.getrlimit(n) for n in range(16)])"
    limits = Limits(cpu_seconds=3, memory_bytes=200 << 20, file_bytes=1 << 20, num_processes=5, num_files=20)
    found = json.loads(box.run(program, limits=limits).stdout.replace("(", "[").replace(")", "]"))
    for number, value in (
        (resource.RLIMIT_CPU, [3, 4]), (resource.RLIMIT_AS, [200 << 20] * 2), (resource.RLIMIT_FSIZE, [1 << 20] * 2),
        (resource.RLIMIT_NPROC, [5, 5]), (resource.RLIMIT_NOFILE, [20, 20]), (resource.RLIMIT_CORE, [0, 0]),
    ):  # fmt: skip
        assert found[number] == value


def test_secrets_and_files_are_out_of_reach_through_links_and_proc(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("SYNE_TEST_SECRET", secret)
    victim = tmp_path / "victim"
    victim.write_text(secret)
    program = f"""
import glob, os
os.symlink({str(victim)!r}, '/tmp/a')
os.symlink('/proc/1/root' + {str(victim)!r}, '/tmp/b')
os.symlink('/proc/1/cwd/../..' + {str(victim)!r}, '/tmp/c')
seen = []
for path in ['/tmp/a', '/tmp/b', '/tmp/c', '/etc/passwd', '/proc/1/mem', *glob.glob('/proc/*/environ'),
             *glob.glob('/proc/[0-9]*/fd/*'), *glob.glob('/proc/self/fd/*')]:
    try:
        with open(path, 'rb', buffering=0) as file:
            os.set_blocking(file.fileno(), False)
            seen.append(file.read(100_000) or b'')
    except OSError:
        pass
try:
    os.symlink('/tmp', '/program.link')
    print('linked')
except OSError:
    pass
print({secret[::-1]!r}.encode()[::-1] in b''.join(seen), b'root:' + b'x' in b''.join(seen))
"""
    outcome = box.run(program, limits=QUICK)
    assert (outcome.reason, outcome.stdout) == ("ok", "False False\n"), outcome


def test_ten_gigabytes_do_not_fit(box: Sandbox) -> None:
    program = """
import os
written = 0
for number in range(2500):
    try:
        with open('/tmp/%d' % number, 'wb', buffering=0) as file:
            for _ in range(4):
                written += file.write(bytes(1_000_000))
    except OSError:
        break
print(written)
"""
    outcome = box.run(program, limits=QUICK)
    assert outcome.reason == "ok" and 0 < int(outcome.stdout) <= sandbox.TMP_BYTES


def test_a_program_dies_with_the_call_that_runs_it(box: Sandbox) -> None:
    mark = f"orphan-{uuid.uuid4().hex}"
    wait = f"[sys.executable, '-c', 'import time; time.sleep(1000)', {mark!r}]"
    program = f"import os, sys\nos.execv(sys.executable, {wait})"
    script = (
        "from tools.synthesis.sandbox import require_sandbox\nfrom tools.synthesis.sandbox_process import Limits\n"
        f"require_sandbox().run({program!r}, limits=Limits(wall_seconds=600.0))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)

    def runs() -> bool:
        return any(line.rstrip().endswith(mark) for line in command_lines())

    while not runs():
        assert caller.poll() is None
        os.sched_yield()
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    while runs():  # the kernel ends it at its own pace
        os.sched_yield()
