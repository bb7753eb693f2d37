"""The one exception for a user's mistake: stages print it as a sentence, without a traceback."""

import difflib
import math
import re

LONGEST_NAME = 100


class UserError(ValueError):
    """Says what is wrong, the value, what is allowed and what to do.

    The sentence is for people. Of a wrong setting, `key`, `value`, `allowed` and `hint` (what was
    probably meant, or what to write instead) hold its parts; None where it has no such part.
    """

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        value: object = None,
        allowed: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint


def check_choice(key: str, value: object, allowed: tuple) -> None:
    """Raises UserError unless `value` is one of `allowed`; it names the closest of them."""
    if value in allowed:
        return
    close = difflib.get_close_matches(str(value), [str(each) for each in allowed], n=1)
    choose = f". Did you mean {close[0]}? Choose" if close else "; choose"
    raise UserError(
        f"{key}={value} is not allowed{choose} one of {', '.join(map(str, allowed))}",
        key=key,
        value=value,
        allowed=allowed,
        hint=close[0] if close else None,
    )


def check_distinct(key: str, values: list) -> None:
    """Raises UserError where `values` names something twice."""
    if len(set(values)) < len(values):
        raise UserError(
            f"{key}={values} is not allowed; it must name none twice", key=key, value=values
        )


def check_not_empty(key: str, values: list) -> None:
    """Raises UserError where `values` names nothing."""
    if not values:
        raise UserError(
            f"{key}={values} is not allowed; it must name at least one", key=key, value=values
        )


def check_name(key: str, value: object) -> None:
    """Raises UserError unless `value` is a plain name, which can be part of a path."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w-][\w.-]*", value)
    if not plain or len(str(value)) > LONGEST_NAME:
        shown = repr(value) if isinstance(value, str) else value
        raise UserError(
            f"{key}={shown} is not allowed; it must be a plain name: letters, digits, '.', '_' and "
            f"'-', not a dot first, at most {LONGEST_NAME}",
            key=key,
            value=value,
        )


def check_range(
    key: str,
    value: float,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    bound_by: str = "",
) -> None:
    """Raises UserError unless `value` is finite and lies in the interval.

    `bound_by` names the key that the last of the bounds is the value of.
    """
    bounds = [
        (minimum, lambda bound: value >= bound, "at least"),
        (above, lambda bound: value > bound, "above"),
        (below, lambda bound: value < bound, "below"),
        (maximum, lambda bound: value <= bound, "at most"),
    ]
    given = [(bound, holds, words) for bound, holds, words in bounds if bound is not None]
    finite = isinstance(value, int) or math.isfinite(value)
    if not (finite and all(holds(bound) for bound, holds, _ in given)):
        allowed = " and ".join(f"{words} {bound}" for bound, _, words in given)
        origin = f" ({bound_by})" if bound_by else ""
        raise UserError(
            f"{key}={value} is not allowed; it must be {allowed}{origin}",
            key=key,
            value=value,
            allowed=allowed,
        )
