"""Divisors, multiples, remainders, inverses and prime factors, with the steps of the school algorithms."""

from sympy import factorint, gcd, ilcm, isprime, mod_inverse

from tools.synthesis.verifiable.topic import Choices, Topic, Values, over

PRIMES = [n for n in range(11, 400) if isprime(n)]
INVERTIBLE = [(a, p) for p in PRIMES for a in range(2, p - 1)]
PAIRS_LIMIT = 1200
COMPOSITES = [n for n in range(60, 30_000) if not isprime(n)]


def topics() -> list[Topic]:
    return [
        # (smaller, larger) as (n, n + step): every pair once.
        over("gcd", Choices(n=range(12, PAIRS_LIMIT), step=range(1, PAIRS_LIMIT)), _gcd),
        over("lcm", Choices(n=range(4, 200), step=range(1, 200)), _lcm),
        over("power_remainder", Choices(a=range(2, 100), k=range(3, 64), m=range(5, 120)), _power_remainder),
        over("inverse", Choices(pair=INVERTIBLE), lambda pair: _inverse(*pair)),
        over("factors", Choices(n=COMPOSITES), _factors),
    ]


def _euclid(a: int, b: int) -> list[str]:
    """The divisions of Euclid's algorithm for a > b, down to remainder 0."""
    lines = []
    while b:
        lines.append(rf"${a} = {a // b} \times {b} + {a % b}$")
        a, b = b, a % b
    return lines


def _gcd(n: int, step: int) -> Values:
    larger = n + step
    return {"n": str(n), "m": str(larger), "steps": "\n".join(_euclid(larger, n)), "final": str(gcd(n, larger))}


def _lcm(n: int, step: int) -> Values:
    larger = n + step
    return {
        "n": str(n),
        "m": str(larger),
        "gcd": str(gcd(n, larger)),
        "n_factors": _product(factorint(n)),
        "m_factors": _product(factorint(larger)),
        "final": str(ilcm(n, larger)),
    }


def _power_remainder(a: int, k: int, m: int) -> Values:
    """Repeated squaring, from the highest bit of k."""
    lines, value, exponent = [], a % m, 1
    lines.append(rf"${a}^1 \equiv {value}$")
    for bit in f"{k:b}"[1:]:
        exponent *= 2
        lines.append(rf"${a}^{{{exponent}}} \equiv {value}^2 = {value * value} \equiv {value * value % m}$")
        value = value * value % m
        if bit == "1":
            exponent += 1
            lines.append(rf"${a}^{{{exponent}}} \equiv {value} \times {a} = {value * a} \equiv {value * a % m}$")
            value = value * a % m
    return {"a": str(a), "k": str(k), "m": str(m), "steps": "\n".join(lines), "final": str(value)}


def _inverse(a: int, p: int) -> Values:
    inverse = int(mod_inverse(a, p))
    return {
        "a": str(a),
        "p": str(p),
        "steps": "\n".join(_euclid(p, a)),
        "product": str(a * inverse),
        "multiple": str(a * inverse // p),
        "final": str(inverse),
    }


def _factors(n: int) -> Values:
    lines, rest = [], n
    factors = factorint(n)
    for prime, exponent in sorted(factors.items()):
        for _ in range(exponent):
            lines.append(rf"${rest} \div {prime} = {rest // prime}$")
            rest //= prime
    return {"n": str(n), "steps": "\n".join(lines[:-1]), "last": str(max(factors)), "shown": _product(factors),
            "final": _product(factors, times=" * ", power="{}^{}")}  # fmt: skip


def _product(factors: dict[int, int], *, times: str = r" \times ", power: str = "{}^{{{}}}") -> str:
    r"""2^{3} \times 5."""
    return times.join(power.format(p, e) if e > 1 else str(p) for p, e in sorted(factors.items()))
