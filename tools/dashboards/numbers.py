"""Numbers as Grafana writes them: the units that the dashboards use, and the ticks of an axis."""

from __future__ import annotations

import math

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", " K", " Mil", " Bil", " Tri")
_SMALL = ((1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "µs", 1e6))
_LARGE = ((86400.0, "day"), (3600.0, "hour"), (60.0, "min"))
_SUFFIX = {"reqps": " req/s", "cps": " c/s", "short": "", "none": ""}


def show(value: float, unit: str, decimals: int | None = None) -> str:
    """Write a value in its unit; without ``decimals`` with about three digits."""
    if math.isnan(value):
        return "-"
    if unit == "bytes":
        return _scaled(value, 1024.0, _BINARY, decimals, gap=" ")
    if unit == "percentunit":
        return f"{_digits(100 * value, decimals)}%"
    if unit == "s":
        return _seconds(value, decimals)
    return _scaled(value, 1000.0, _DECIMAL, decimals, gap="") + _SUFFIX[unit]


def ticks(top: float, unit: str, *, whole: bool = False, most: int = 5) -> list[float]:
    """Choose round values from zero to at least ``top``; ``whole`` ones for what is counted."""
    base = 1024.0 if unit == "bytes" else 1000.0
    scale = base ** max(0, math.floor(math.log(top, base))) if top >= 1 else 1.0
    step = max(_round_up(top / scale / most) * scale, 1.0 if whole else 0.0)
    return [number * step for number in range(math.ceil(top / step - 1e-9) + 1)]


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step - 1e-12)


def _scaled(value: float, base: float, names: tuple[str, ...], decimals: int | None, *, gap: str) -> str:
    size, place = abs(value), 0
    while size >= base and place < len(names) - 1:
        size, place = size / base, place + 1
    whole = place == 0 and value == int(value)
    return f"{_digits(math.copysign(size, value), 0 if whole else decimals)}{gap}{names[place]}"


def _seconds(value: float, decimals: int | None) -> str:
    for size, name in _LARGE:
        if abs(value) >= size:
            return f"{_digits(value / size, decimals)} {name}"
    factor, name = next((factor, name) for least, name, factor in _SMALL if abs(value) >= least or value == 0)
    return f"{_digits(value * factor, decimals if factor == 1 else None)} {name}"


def _digits(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == int(value):
        return f"{value:.0f}"
    places = max(0, 2 - max(0, math.floor(math.log10(abs(value)))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text
