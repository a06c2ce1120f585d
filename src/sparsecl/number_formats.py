"""How the paper writes numbers: percentage points, nats, p-values, intervals (paper, all tables and text).

Every function returns LaTeX, or None where the number is absent; absent is never written as 0.
"""

import math
from collections.abc import Callable

DASH = "--"
_SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}


def latex_text(text: str) -> str:
    """Escape characters that mean something to LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text.replace("\\", "/"))


def is_absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def _decimal(value: float, digits: int, sign: bool) -> str:
    text = f"{abs(value):.{digits}f}"
    # A value that rounds to zero has no sign: -0.0 would claim a direction.
    minus = value < 0 and float(text) != 0
    return ("$-$" if minus else "$+$" if sign and float(text) != 0 else "") + text


def points(value: float, sign: bool = False) -> str | None:
    """A fraction as percentage points (or percent) with one decimal: -0.051 -> $-$5.1."""
    return None if is_absent(value) else _decimal(100 * value, 1, sign)


def nats(value: float, sign: bool = False) -> str | None:
    """A loss in nats per answer token with two decimals."""
    return None if is_absent(value) else _decimal(value, 2, sign)


def thousandths(value: float, sign: bool = False) -> str | None:
    """A cosine, or another number near 0, with three decimals."""
    return None if is_absent(value) else _decimal(value, 3, sign)


def p_value(value: float, sign: bool = False) -> str | None:
    """A p-value with its relation: $= 0.034$, or $< 0.001$."""
    if is_absent(value):
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"p-value {value!r} is outside [0, 1]; check tests.csv")
    return "$< 0.001$" if value < 0.001 else f"$= {value:.3f}$"


def count(value: float, sign: bool = False) -> str | None:
    """A whole number with thousands separated: 542{,}000."""
    return None if is_absent(value) else f"{round(value):,}".replace(",", "{,}")


def rate(value: float, sign: bool = False) -> str | None:
    r"""A learning rate or another small setting: $7\times10^{-4}$."""
    if is_absent(value):
        return None
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    mantissa = f"{float(mantissa):g}"
    return f"${'' if mantissa == '1' else mantissa + chr(92) + 'times'}10^{{{int(exponent)}}}$"


def interval(low: float, high: float, form: Callable[..., str | None], sign: bool = False) -> str | None:
    """A confidence interval: [$-$7.1, 0.3]."""
    if is_absent(low) or is_absent(high):
        return None
    return f"[{form(low, sign)}, {form(high, sign)}]"
