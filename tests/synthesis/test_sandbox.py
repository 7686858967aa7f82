"""Hostile programs in the real sandbox: contained, reported with a reason, nothing left alive."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import Counter
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from tools.synthesis import control_group, sandbox
from tools.synthesis.control_group import ControlGroup
from tools.synthesis.sandbox import Example, Sandbox, require_sandbox
from tools.synthesis.sandbox_process import Limits

ROOT = Path(__file__).parents[2]
QUICK = Limits(wall_seconds=20.0, cpu_seconds=5, memory_bytes=256 << 20)


def command_lines() -> list[str]:
    """Of all processes of this machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines


pytestmark = pytest.mark.bubblewrap


def test_a_good_program_passes_its_examples(box: Sandbox) -> None:
    program = "import sys\nprint(sum(int(word) for word in sys.stdin.read().split()))"
    examples = [Example(stdin="1 2 3\n", stdout="6"), Example(stdin="-4 4", stdout="0  \n")]
    verdict = box.check(program, examples)
    assert (verdict.passed, verdict.reason) == (True, "")


def test_a_wrong_answer_is_shown_beside_the_right_one(box: Sandbox) -> None:
    verdict = box.check("print(int(input()) * 2)", [Example(stdin="2", stdout="4"), Example(stdin="3", stdout="9")])
    assert not verdict.passed
    assert verdict.reason == r"example 2: printed '6\n' instead of '9'"


def test_a_function_is_tested_by_code_that_must_not_raise(box: Sandbox) -> None:
    program = "def double(x):\n    return 2 * x"
    assert box.check(program, [Example(test="assert double(4) == 8")]).passed
    verdict = box.check(program, [Example(test="assert double(4) == 9, 'not nine'")])
    assert not verdict.passed
    assert "AssertionError: not nine" in verdict.reason


def test_leaving_before_the_test_does_not_pass(box: Sandbox) -> None:
    verdict = box.check("import sys\nsys.exit(0)", [Example(test="assert 1 == 2")])
    assert (verdict.passed, verdict.reason) == (False, "example 1: left before the test was over")


def test_no_examples_pass_nothing(box: Sandbox) -> None:
    assert box.check("print(1)", []).passed is False


FORK_BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        print('refused', flush=True)
        time.sleep(1000)
"""


def test_a_fork_bomb_stays_small_and_leaves_no_process(box: Sandbox) -> None:
    name = f"bomb-{uuid.uuid4().hex}"
    outcome = box.run(f"# {name}\n{FORK_BOMB}", limits=Limits(wall_seconds=3.0, num_processes=8))
    assert outcome.reason == "time"
    # One line for each process that could not fork: at most the limit less bubblewrap's first process.
    assert 1 <= outcome.stdout.count("refused") <= 7


@pytest.mark.parametrize(
    "program",
    [
        "kept = []\nwhile True: kept.append(bytearray(10_000_000))",
        "kept = 'x' * (1 << 40)",
        "import mmap\nkept = [mmap.mmap(-1, 1 << 27) for _ in range(100)]",
    ],
    ids=["grows", "at once", "mapped"],
)
def test_a_memory_bomb_ends_with_its_reason(box: Sandbox, program: str) -> None:
    outcome = box.run(program, limits=QUICK)
    assert outcome.reason in ("memory", "error")  # mmap says "Cannot allocate memory"
    assert "MemoryError" in outcome.stderr or "Cannot allocate memory" in outcome.stderr


def test_many_processes_together_stay_below_the_memory_of_one_where_a_group_can_be_made(box: Sandbox) -> None:
    with ControlGroup(memory_bytes=1 << 28, num_processes=8) as group:
        if not {"memory.max", "memory.limit_in_bytes"} & set(group.limits):
            pytest.skip("no memory control group can be made here: run as root, or with Delegate=yes")
    program = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        break
kept = [bytearray(b'x' * 1_000_000) for _ in range(150)]
print('held', flush=True)
time.sleep(1000)
"""
    outcome = box.run(program, limits=Limits(wall_seconds=6.0, memory_bytes=256 << 20))
    # 6 x 150 MB would fit the limits of each process: the group of 256 MB is what stops them.
    assert outcome.stdout.count("held") <= 1
    assert outcome.reason in ("memory", "time")


@pytest.mark.parametrize("size", [10_000_000, 3_000_000])
def test_files_fill_neither_disk_nor_memory(box: Sandbox, size: int) -> None:
    program = f"""
import os
written = 0
for folder in ('/tmp', '/dev/shm', '/', '/dev', '/usr/lib', '/proc', '/tmp'):
    for number in range(40):
        try:
            with open(os.path.join(folder, 'f%d' % number), 'wb', buffering=0) as file:
                while file.tell() < {size}:
                    written += file.write(bytes(100_000))
        except OSError:
            pass
print(written)
"""
    outcome = box.run(program, limits=QUICK)
    assert outcome.reason == "ok", outcome
    assert int(outcome.stdout) <= 2 * sandbox.TMP_BYTES


def test_files_of_this_machine_can_be_neither_seen_nor_deleted_nor_written(box: Sandbox, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    tmp_path.chmod(0o777)
    victim.chmod(0o666)
    program = f"""
import os, shutil, sys
for path in ({str(victim)!r}, {str(ROOT)!r}, '/etc/shadow', '/etc/passwd', {str(Path.home())!r}, '/home',
             '/root', '/proc/1/root/etc', '/proc/1/environ', '/sys', '/var', '/run'):
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path).read()
    except OSError:
        continue
    if found:
        print('saw', path, found)
for path in ('/usr', '/lib', '/proc', '/dev', '/program.py', sys.executable, os.__file__):
    try:
        (shutil.rmtree if os.path.isdir(path) else os.remove)(path)
    except OSError:
        continue
    print('removed', path)
for path in ({str(victim)!r}, '/escaped', '/usr/lib/escaped', os.__file__):
    try:
        open(path, 'w').write('x')
    except OSError:
        continue
    print('wrote', path)
print(sorted(os.environ))
"""
    outcome = box.run(program, limits=QUICK)
    assert outcome.reason == "ok", outcome
    assert outcome.stdout == "['HOME', 'LC_ALL', 'OMP_NUM_THREADS', 'PATH', 'PWD']\n"
    assert victim.read_text() == "precious"
    assert not Path("/usr/lib/escaped").exists()


def test_there_is_no_network(box: Sandbox) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0syne-{uuid.uuid4().hex}")
        local.listen()
        program = f"""
import socket
for family, address in ((socket.AF_INET, ('127.0.0.1', {server.getsockname()[1]})), (socket.AF_INET, ('1.1.1.1', 80)),
                        (socket.AF_UNIX, {local.getsockname()!r})):
    try:
        socket.socket(family).connect(address)
    except OSError as error:
        print(error.errno)
    else:
        print('connected', address)
try:
    socket.getaddrinfo('example.org', 80)
except OSError:
    print('no name')
print(open('/proc/net/dev').read().count(':'))
"""
        outcome = box.run(program, limits=QUICK)
    assert outcome.stdout.split("\n")[:-1] == ["111", "101", "111", "no name", "1"], outcome  # refused, unreachable


def test_an_endless_loop_ends_at_the_cpu_limit(box: Sandbox) -> None:
    outcome = box.run("while True: pass", limits=Limits(wall_seconds=60.0, cpu_seconds=1))
    assert outcome.reason == "cpu time"


def test_waiting_for_ever_ends_at_the_wall_clock(box: Sandbox) -> None:
    outcome = box.run("import time\ntime.sleep(1000)", limits=Limits(wall_seconds=0.5))
    assert outcome.reason == "time"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_cut(box: Sandbox, stream: str) -> None:
    outcome = box.run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", limits=Limits(output_bytes=10_000))
    assert outcome.reason == "output"
    assert len(outcome.stdout + outcome.stderr) == 10_000


def test_signals_reach_nobody_outside_and_limits_cannot_be_raised(box: Sandbox) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # not the parent, which may be number 1 as inside
    try:
        outcome = box.run(
            f"""
import os, resource, signal
for pid in ({os.getpid()}, {other.pid}):
    try:
        os.kill(pid, signal.SIGTERM)
        print('reached', pid)
    except ProcessLookupError:
        print('nobody')
for name in ('RLIMIT_CPU', 'RLIMIT_AS', 'RLIMIT_NPROC', 'RLIMIT_FSIZE'):
    try:
        resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print('raised', name)
    except (ValueError, OSError):
        pass
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    pass
print('still here', os.getuid(), sorted(int(pid) for pid in os.listdir('/proc') if pid.isdigit()))
""",
            limits=QUICK,
        )
    finally:
        signal.signal(signal.SIGTERM, before)
        other.communicate()
    assert outcome.stdout == "nobody\nnobody\nstill here 65534 [1, 2]\n", outcome
    assert (heard, other.returncode) == ([], 0)


def test_no_namespace_can_be_made_inside_and_nothing_mounted(box: Sandbox) -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000), libc.unshare(0x00020000), libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))
print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])
"""
    outcome = box.run(program, limits=QUICK)
    assert outcome.stdout == "-1 -1 -1\n0000000000000000\n", outcome


def test_daemons_die_with_the_program_and_do_not_hold_it_up(box: Sandbox) -> None:
    mark = f"daemon-{uuid.uuid4().hex}"
    program = f"""
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000)', {mark!r}])
    os._exit(0)
print('left')
"""
    outcome = box.run(program, limits=Limits(wall_seconds=30.0))
    assert (outcome.reason, outcome.stdout) == ("ok", "left\n")
    assert not [line for line in command_lines() if mark in line]
    assert children_of(os.getpid()) == []


def children_of(pid: int) -> list[str]:
    """Zombies included; the helper processes of other tests have their own names."""
    found = subprocess.run(
        ["ps", "-o", "comm=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [name for name in found.split() if name == "bwrap"]


def test_many_threads_can_run_programs_at_once(box: Sandbox) -> None:
    results: dict[int, str] = {}

    def one(number: int) -> None:
        results[number] = box.run(f"print({number})").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n" for number in range(6)}


def test_files_and_groups_are_given_back(box: Sandbox) -> None:
    gc.collect()  # files of other tests, whose end may still come later
    before = _open_files()
    box.run("print(1)")
    with pytest.raises(ConfigError, match="cannot set the sandbox up"):
        Sandbox(box.bubblewrap, Path("/nowhere/bin/python3"), box.drop_to).run("print(1)")
    assert not _open_files() - before
    left = [folder for parent in control_group._own_groups() for folder in parent.glob(f"syne-sandbox-{os.getpid()}-*")]
    assert left == []


def _open_files() -> Counter[str]:
    """What this process' descriptors lead to. A link may be gone before it is read: listing opens one."""
    return Counter(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


def test_without_bubblewrap_or_namespaces_nothing_is_run(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    """A bwrap that cannot make namespaces: the program must not be started in any other way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # the user that bubblewrap runs as must reach it
        monkeypatch.setenv("PATH", name)
        with pytest.raises(ConfigError, match=r"bwrap is not installed: apt-get install bubblewrap") as refusal:
            require_sandbox()
        assert refusal.value.exit_code == 2

        (folder / "bwrap").write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
        (folder / "bwrap").chmod(0o755)
        with pytest.raises(ConfigError, match=r"version 0\.4\.1, too old"):
            require_sandbox()

        (folder / "bwrap").write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit\n'
            "echo 'bwrap: No permissions to create new namespace' >&2; exit 1\n"
        )
        with pytest.raises(ConfigError, match=r"(?s)No permissions to create new namespace.*user\.max_user_namespaces"):
            require_sandbox()
        with pytest.raises(ConfigError):
            Sandbox(folder / "bwrap", box.python, None).run(f"open({name + '/witness'!r}, 'w')")
        assert [path.name for path in folder.iterdir()] == ["bwrap"]


def test_a_required_marker_turns_a_skip_into_a_failure(tmp_path: Path) -> None:
    test = ROOT / "tests/synthesis/test_sandbox.py"
    results = []
    for required in ("", "slurm,bubblewrap"):
        environment = {"PATH": str(tmp_path), "SYNE_REQUIRE": required, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{test}::test_no_examples_pass_nothing"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        results.append((done.returncode, "apt-get install bubblewrap" in done.stdout or not required))
    assert results == [(0, True), (1, True)]
