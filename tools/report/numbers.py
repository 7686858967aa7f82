"""Numbers as a person reads them."""

import math


def short(number: float) -> str:
    """At most four digits with a unit of thousands: 1.5 k, 20 M, 3.2 B, 1.1 T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.4g} {unit}"
    return f"{number:.4g}"


def tick(value: float, _position: object = None) -> str:
    """The same for an axis; small numbers as 2e-5."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    return short(value)


def fixed(value: float | None, decimals: int = 0, *, sign: bool = False) -> str:
    """A dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''},.{decimals}f}"


def percent(share: float | None, decimals: int = 1) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def duration(seconds: float | None) -> str:
    """3 d 4 h, 4 h 5 min, 5 min 6 s, 6.1 s."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(num_bytes: float) -> str:
    for limit, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.2f} {unit}"
    return f"{num_bytes:.0f} B"
