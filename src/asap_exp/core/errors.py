"""Exception for user errors; stages print it as one sentence, without a traceback."""

import difflib
import math
import re

LONGEST_NAME = 100
"""Characters of a name that becomes part of a path."""


class UserError(ValueError):
    """User error; the message says what is wrong, the value, what is allowed and what to do.

    For a wrong setting, `key`, `value`, `allowed` and `hint` (what was probably meant, or what to
    write instead) hold the parts of the message; a part that it does not have is None.
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


class DataNotFound(UserError):
    """Raised when no source has the data set."""


def check_choice(key: str, value: object, allowed: tuple) -> None:
    """Raise UserError unless `value` is one of `allowed`; it names the closest of them."""
    if value not in allowed:
        raise not_allowed(key, value, allowed)


def not_allowed(key: str, value: object, allowed: tuple) -> UserError:
    """Return the UserError for a value that is not one of `allowed`."""
    close = difflib.get_close_matches(str(value).lower(), [str(each) for each in allowed], n=1)
    choose = f". Did you mean {close[0]}? Choose" if close else "; choose"
    words = ("null" if each is None else str(each) for each in allowed)  # as YAML writes it
    return UserError(
        f"{key}={value} is not allowed{choose} one of {', '.join(words)}",
        key=key,
        value=value,
        allowed=allowed,
        hint=close[0] if close else None,
    )


def check_distinct(key: str, values: list) -> None:
    """Raise UserError if `values` contains duplicates."""
    if len(set(values)) < len(values):
        raise UserError(
            f"{key}={values} is not allowed; remove the duplicates", key=key, value=values
        )


def check_not_empty(key: str, values: list) -> None:
    """Raise UserError if `values` is empty."""
    if not values:
        raise UserError(
            f"{key}={values} is not allowed; it must name at least one", key=key, value=values
        )


def check_name(key: str, value: object) -> None:
    """Raise UserError unless `value` is a plain name, which can be part of a path."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w-][\w.-]*", value)
    if not plain or len(str(value)) > LONGEST_NAME:
        shown = repr(value) if isinstance(value, str) else value
        raise UserError(
            f"{key}={shown} is not allowed; it must be a plain name of letters, digits, '.', '_' "
            f"and '-', not starting with a dot, at most {LONGEST_NAME} long",
            key=key,
            value=value,
        )


def plain(value: float) -> str:
    """Return a number as it is typed: a whole one without a decimal point."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_range(
    key: str,
    value: float,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    bound_by: str = "",
    fitting: object = None,
) -> None:
    """Raise UserError unless `value` is finite and lies in the interval.

    `bound_by` names the key whose value is the last of the given bounds. That key may be the only
    one of both that was given, so the message begins with it, and says a value that is `fitting`.
    """
    bounds = [
        (minimum, lambda bound: value >= bound, "at least"),
        (above, lambda bound: value > bound, "above"),
        (below, lambda bound: value < bound, "below"),
        (maximum, lambda bound: value <= bound, "at most"),
    ]
    given = [(bound, holds, words) for bound, holds, words in bounds if bound is not None]
    finite = isinstance(value, int) or math.isfinite(value)
    failed = [words for bound, holds, words in given if not holds(bound)]
    if finite and bound_by and failed == [given[-1][2]]:
        bound, _, words = given[-1]
        raise UserError(
            f"{bound_by}={bound} needs {key} {words} {bound}, got {plain(value)}; give "
            f"{key}={fitting}",
            key=key,
            value=value,
            allowed=f"{words} {bound}",
            hint=f"{key}={fitting}",
        )
    if failed or not finite:
        allowed = " and ".join(f"{words} {bound}" for bound, _, words in given)
        raise UserError(
            f"{key}={value} is not allowed; it must be {allowed}",
            key=key,
            value=value,
            allowed=allowed,
        )
