"""A real Slurm cluster on one machine: a controller and nodes, each in namespaces of its own, started in two seconds.

    controller  slurmctld, munged; net, mount, uts and ipc namespace; commands of `run` are its clients
       │ br0 (10.231.0.0/24)
    node1, node2, ...  slurmd under an init of its own; also a pid namespace: killing the init is a machine's crash
Every process dies with the process that made the cluster, and the namespaces with the processes; only the folder is
left to be removed. Needs root and Debian's packages (`INSTALL`). `python -m tests.slurm.cluster` opens a shell in it.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

INSTALL = "apt-get install --no-install-recommends slurm-wlm munge iproute2 procps"
NODES = ("node1", "node2")
CPUS, MEMORY_MB, GPUS = 8, 16_000, 8  # of a node; what this machine has does not matter
PORT = 16817
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
# pid 1 of a node must reap what is left over by others; so it is a shell that waits.
INIT = """
hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs -o mode=1777 tmpfs /dev/shm || exit 97
ip link set lo up || exit 98
: > "$3"
trap 'exit 0' TERM INT
while :; do setpriv --pdeathsig KILL sleep 86400 & wait $!; done
"""


def unavailable() -> str | None:
    """Why there can be no cluster here, or None."""
    needed = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "ps", "unshare", "nsenter", "setpriv")
    missing = [name for name in needed if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"{', '.join(missing)} not found: {INSTALL}"
    return "only root can make the nodes' namespaces" if os.geteuid() != 0 else None


class Cluster:
    """A context manager. Its methods raise AssertionError with the daemons' last log lines where something fails."""

    def __init__(self) -> None:
        # A short path: it is part of the names of Unix sockets, which may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="syne-slurm-", dir="/tmp"))
        self.conf = self.folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._inits: dict[str, int] = {}
        self._boots = 0
        self._crashed: set[str] = set()
        self._hurt: set[str] = set()

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        code: int | None = 0,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client on the controller and give its output; `code`: the exit code it must have (None: any)."""
        done = subprocess.run(
            self._inside("controller", command, cwd),
            env=self._env(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        shown = " ".join(map(str, command))
        assert code is None or done.returncode == code, f"{shown}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def popen(
        self, *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A client in the background, as one process that can be signalled; stdout and stderr in one pipe.

        As a terminal starts it: what runs in a shell's background, even these tests, hands on that it ignores SIGINT.
        """
        return subprocess.Popen(
            ["env", "--default-signal=INT", *self._inside("controller", command, cwd)],
            env=self._env(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def on(self, node: str, *command: str | Path) -> str:
        """Run a command inside a node; its output."""
        done = subprocess.run(self._inside(node, command, None), env=self._env(None), capture_output=True, text=True)
        assert done.returncode == 0, f"{node}: {command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def processes(self, part: str) -> list[tuple[str, int]]:
        """(node, pid inside it) of every process with `part` in its command line."""
        found = []
        for node in NODES:
            if node in self._inits:
                lines = (line.split(None, 1) for line in self.on(node, "ps", "-eo", "pid=,args=").splitlines())
                found += [(node, int(pid)) for pid, args in lines if part in args]
        return found

    def outside(self, beginning: str) -> list[tuple[str, int]]:
        """(node, pid on this machine) of every process whose command line begins so: to be signalled at once."""
        inits = {node: self._inits[node] for node in NODES if node in self._inits}
        spaces = {Path(f"/proc/{pid}/ns/pid").readlink(): node for node, pid in inits.items()}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                node = spaces.get((process / "ns/pid").readlink())
                if node and (process / "cmdline").read_text().replace("\0", " ").startswith(beginning):
                    found.append((node, int(process.name)))
        return sorted(found)

    def kill(self, node: str, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process inside a node; one that has ended meanwhile is no fault."""
        self.on(node, "sh", "-c", f"kill -{number.value} {pid} 2>/dev/null || ! kill -0 {pid} 2>/dev/null")

    def kill_slurmd(self, node: str) -> None:
        """A dead daemon: jobs on the node live on, unseen by the controller."""
        self.kill(node, int(self._pid_file(node).read_text()))
        self._hurt.add(node)

    def crash(self, node: str) -> None:
        """A dead machine: everything in it ends at once."""
        self._end(node)
        del self._inits[node]
        self._crashed.add(node)
        self._hurt.add(node)

    def cut(self, node: str) -> None:
        """Pull the node's network cable."""
        self._cable(node, "down")
        self._hurt.add(node)

    def join(self, node: str) -> None:
        """Plug it in again."""
        self._cable(node, "up")

    def start_node(self, node: str) -> None:
        """Boot a node that has crashed, or start its daemon again; nothing where both run."""
        if node not in self._inits:
            self._boot(node, 11 + NODES.index(node))
        if not self._runs_slurmd(node):
            rebooted = ("-b",) if node in self._crashed else ()  # what ran on it is lost
            self.on(node, "slurmd", *rebooted, "-N", node, "-f", self.conf)
            self._crashed.discard(node)

    def wait(self, what: str, holds: Callable[[], object], seconds: float = 240, *, pause: float = 0.05) -> None:
        """Until `holds()` is true, asked every `pause` seconds; else AssertionError with the daemons' logs."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self._last_lines()}"
            time.sleep(pause)

    def jobs(self, *options: str) -> list[str]:
        """`squeue`'s lines 'job_element state', one for each element of an array."""
        return self.run("squeue", "--noheader", "--array", "--format=%i %T", *options).stdout.splitlines()

    def reset(self) -> None:
        """No jobs, every node up: as a test finds it."""
        for node in NODES:
            self.start_node(node)
            self.join(node)
        for node in self._hurt:  # else its jobs of before stay "completing" for minutes
            self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
            self.run("scontrol", "update", f"nodename={node}", "state=resume", code=None)  # or it is back by itself
        self._hurt.clear()
        if jobs := {line.split()[0].split("_")[0] for line in self.jobs()}:
            self.run("scancel", "--signal=KILL", *jobs, code=None)
            self.run("scancel", *jobs, code=None)
        self.wait("the end of all jobs", lambda: not self.jobs())
        self.wait_for_nodes()

    def stop(self) -> None:
        """End every process and remove the folder; may be called twice."""
        for name in list(self._daemons):
            self._end(name)
        self._inits.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        for name in ("etc", "log", "spool", "state", "dev"):
            (self.folder / name).mkdir()
        addresses = {"controller": 1} | {node: 11 + index for index, node in enumerate(NODES)}
        hosts = "".join(f"10.231.0.{number} {name}\n" for name, number in addresses.items())
        (self.folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}", encoding="utf-8")
        self._write_configuration()
        self._boot("controller", 1)
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        paths = [f"--{kind}={self.folder / 'etc' / f'munge.{kind}'}" for kind in ("socket", "seed-file", "pid-file")]
        self._daemon("munged", "munged", "--foreground", "--force", f"--key-file={key}", *paths)
        self.wait("munged", (self.folder / "etc" / "munge.socket").exists)
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self.conf)
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def _write_configuration(self) -> None:
        devices = [self.folder / "dev" / f"nvidia{index}" for index in range(GPUS)]
        for device in devices:  # /dev/null under another name: a GPU that can be allotted, not used
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        gpus = f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/dev/nvidia[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gpus, encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("", encoding="utf-8")
        nodes = "".join(
            f"NodeName={node} NodeAddr={node} Port={PORT + 1} CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS}\n"
            for node in NODES
        )
        self.conf.write_text(CONFIGURATION.format(folder=self.folder, port=PORT) + nodes, encoding="utf-8")

    def _boot(self, name: str, address: int) -> None:
        """The namespaces of one machine, and its cable to the controller's bridge."""
        booted = self.folder / "etc" / f"{name}.booted"
        booted.unlink(missing_ok=True)
        spaces = ("--net", "--mount", "--uts", "--ipc", "--propagation", "slave")
        if name != "controller":
            spaces += ("--pid", "--fork", "--kill-child", "--mount-proc")
        arguments = ("bash", "-c", INIT, "init", name, str(self.folder / "etc" / "hosts"), str(booted))
        with (self.folder / "log" / f"{name}.init.log").open("ab") as log:
            command = [*DIES_WITH_US, "unshare", *spaces, "--", *arguments]
            process = subprocess.Popen(command, env=self._env(None), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemons[name] = process
        self.wait(f"the namespaces of {name}", lambda: booted.exists() or process.poll() is not None)
        assert process.poll() is None, f"{name} did not boot\n{self._last_lines()}"
        if name == "controller":
            self._inits[name] = process.pid
            self._ip("link", "add", "br0", "type", "bridge")
            self._ip("addr", "add", f"10.231.0.{address}/24", "dev", "br0")
            self._ip("link", "set", "br0", "up")
            return
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        self._inits[name] = int(children.split()[0])
        self._boots += 1  # the cable of a crashed machine lingers a moment under its name
        cable = f"{name}.{self._boots}"
        self._ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(self._inits[name]))
        self._ip("link", "set", cable, "alias", name, "master", "br0", "up")
        self.on(name, "ip", "addr", "add", f"10.231.0.{address}/24", "dev", "eth0")
        self.on(name, "ip", "link", "set", "eth0", "up")

    def _cable(self, node: str, state: str) -> None:
        """Up or down, the newest cable of this name."""
        links = self.run("ip", "-brief", "link").stdout.split()
        names = [link.split("@")[0] for link in links if link.startswith(f"{node}.")]
        self._ip("link", "set", max(names, key=lambda name: int(name.split(".")[1])), state)

    def _ip(self, *arguments: str) -> None:
        self.run("ip", *arguments)

    def _inside(self, machine: str, command: Sequence[str | Path], cwd: Path | None) -> list[str]:
        spaces = ("--net", "--mount", "--uts", "--ipc", *(() if machine == "controller" else ("--pid",)))
        place = f"--wd={cwd or Path.cwd()}"
        return [*DIES_WITH_US, "nsenter", f"--target={self._inits[machine]}", *spaces, place, "--", *map(str, command)]

    def _env(self, more: dict[str, str] | None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "PATH": _search_path(), "SLURM_CONF": str(self.conf), **(more or {})}

    def _daemon(self, name: str, *command: str | Path) -> None:
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            line = self._inside("controller", command, self.folder)
            self._daemons[name] = subprocess.Popen(
                line, env=self._env(None), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _end(self, name: str) -> None:
        process = self._daemons.pop(name)
        process.kill()
        process.wait()
        if (init := self._inits.get(name)) is not None:  # ends by --kill-child, a moment later
            self.wait(f"the end of {name}", lambda: not Path(f"/proc/{init}").exists())

    def _pid_file(self, node: str) -> Path:
        return self.folder / "etc" / f"slurmd.{node}.pid"

    def _runs_slurmd(self, node: str) -> bool:
        try:
            pid = self._pid_file(node).read_text().strip()
        except FileNotFoundError:
            return False
        return ("slurmd", pid) in [
            tuple(line.split()) for line in self.on(node, "ps", "-eo", "comm=,pid=").splitlines()
        ]

    def wait_for_nodes(self) -> None:
        """Until every node can be given to jobs."""

        def all_up() -> bool:
            states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", code=None, timeout=30).stdout.split()
            return len(states) == len(NODES) and all(state in ("idle", "mixed", "allocated") for state in states)

        self.wait("all nodes up", all_up)

    def _last_lines(self) -> str:
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"== {log.name}\n{chr(10).join(log.read_text().splitlines()[-8:])}" for log in logs)


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


CONFIGURATION = """\
ClusterName=test
SlurmctldHost=controller
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# Also how long a requeued job waits before it may start again; 120 s if not given.
AuthInfo=socket={folder}/etc/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/etc/slurmctld.pid
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/etc/slurmd.%n.pid
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobs.txt
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Believe the nodes' CPUs and memory as written here.
SlurmdParameters=config_overrides
ReturnToService=2
# With the two below, a crashed node is down after about 17 s.
MessageTimeout=4
SlurmdTimeout=10
KillWait=3
MinJobAge=600
MaxArraySize=101
JobRequeue=1
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
"""


if __name__ == "__main__":
    if reason := unavailable():
        sys.exit(reason)
    with Cluster() as cluster:
        subprocess.run(cluster._inside("controller", ("bash",), None), env=cluster._env(None), check=False)
