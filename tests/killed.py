"""Commands of `syne` that die of SIGKILL at a named moment: the same one on every machine, however busy it is.

A test that watches from outside and then kills may come too late, when the command is over.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, signal, sys
from pathlib import Path
from tools.cli import main
from tools.synthesis.answers import Part

kind, moment = sys.argv[1:3]

def killed_after(function, is_reached):
    def deadly(first, second):
        result = function(first, second)
        if is_reached(second):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return deadly

def is_last(_, left=[int(moment) if kind == "answers" else 0]):
    left[0] -= 1
    return left[0] == 0

if kind == "file":
    Path.replace = killed_after(Path.replace, lambda target: target.as_posix().endswith(moment))
else:
    Part.append = killed_after(Part.append, is_last)
sys.exit(main(sys.argv[3:]))
"""


def behind_file(ending: str, *arguments: object) -> None:
    """`syne <arguments>`, killed as soon as its process itself has given a file a name that ends so."""
    _killed("file", ending, arguments)


def behind_answers(count: int, *arguments: object) -> None:
    """`syne <arguments>`, killed as soon as it has kept so many answers (tools/synthesis/answers.py)."""
    _killed("answers", str(count), arguments)


def _killed(kind: str, moment: str, arguments: tuple[object, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, moment, *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, f"{kind} {moment}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
