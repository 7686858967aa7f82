"""The exact value of written arithmetic, by SymPy in a process of its own with bounded time and memory.

    with Recomputer() as recomputer:
        recomputer.value("2 + 3 \\\\times 4")      Fraction(14)
        recomputer.value("\\\\sqrt{2}")             1.414... (float: not rational)
        recomputer.value("9^9^9")                None: too large, in bounded time
The text goes through tools/synthesis/expression.py alone; SymPy's own parser executes what it reads and is not used.
"""

import json
import math
import os
import resource
import select
import subprocess
import sys
from fractions import Fraction
from operator import add, mul, neg, truediv
from typing import IO, Any

from data_mixers.errors import DataError
from tools.synthesis.expression import MAX_EXPONENT, Node, NotAnExpressionError, parse

SECONDS = 2.0
START_SECONDS = 60.0
MEMORY_BYTES = 1 << 30
MAX_RESULT_DIGITS = 2000
FLOAT_DIGITS = 17
_OPERATIONS: dict[str, Any] = {"+": add, "-": neg, "*": mul, "/": truediv, "^": pow}


class Recomputer:
    """Asks one child process, which is replaced when a question kills it. Not for use by several threads at once.

    Cost: half a second for each start, then 0.1 to 1 ms a question; a question that is too large costs SECONDS.
    """

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Recomputer":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def value(self, text: str) -> Fraction | float | None:
        """A Fraction where the value is rational, else a float; None if it is no arithmetic, undefined or too large."""
        try:
            parse(text)
        except NotAnExpressionError:
            return None
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(text) + "\n")
            child.stdin.flush()
            answer = _line(child.stdout, self._seconds)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._stop()
            return None
        found: str | float | None = json.loads(answer)
        return Fraction(found) if isinstance(found, str) else found

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            command = [sys.executable, "-m", "tools.synthesis.recompute"]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            assert self._child.stdout is not None
            if _line(self._child.stdout, START_SECONDS) is None:
                self._stop()
                raise DataError("the process for recomputing arithmetic does not start; is sympy installed?")
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _line(stream: IO[str], seconds: float) -> str | None:
    """The next line, which the child writes at once; None after so many seconds, or if the child has ended."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return (stream.readline() or None) if poll.poll(1000 * seconds) else None


def serve() -> None:
    """The child: a JSON text a line in, its value a line out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import sympy

    sympy.sqrt(sympy.Rational(1, 2)).is_rational  # noqa: B018  # loads what SymPy loads late
    _say("ready")
    for line in sys.stdin:
        try:
            _say(_answer(parse(json.loads(line))))
        except (ArithmeticError, ValueError, MemoryError, RecursionError, TypeError):
            _say(None)


def _say(answer: str | float | None) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _answer(node: Node) -> str | float | None:
    """A fraction as text, or a real number; None: too many digits, undefined, not real, or no float."""
    from sympy import N

    found = _evaluated(node)
    if found.is_Rational:
        is_small = max(abs(found.p), found.q).bit_length() <= MAX_RESULT_DIGITS * 3.33
        return f"{found.p}/{found.q}" if is_small else None
    real = float(str(N(found, FLOAT_DIGITS))) if found.is_real and found.is_finite else math.inf
    return real if math.isfinite(real) else None


def _evaluated(node: Node) -> "sympy.Expr":  # type: ignore[name-defined]  # noqa: F821  # imported in the child alone
    from sympy import Rational, sqrt

    if node.operation == "number":
        return Rational(node.number)
    parts = [_evaluated(part) for part in node.parts]
    if node.operation == "sqrt":
        return sqrt(parts[0])
    if node.operation == "^" and abs(parts[1]) > MAX_EXPONENT:
        raise ValueError("the exponent is too large")
    return _OPERATIONS[node.operation](*parts)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    serve()
