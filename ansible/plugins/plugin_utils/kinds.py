"""What a variable may be, and what is said about a value that is something else. Pure."""

import math
import re
from dataclasses import dataclass

from .weak_tokens import MAKE_ONE, weakness

TRUE_OR_FALSE = ("true", "false", "yes", "no", "on", "off", "1", "0")
# Not `010`, which YAML reads as 8, nor `1_000`, nor ` 5`.
WHOLE = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
# Of these the message shows no value: they hold a secret, or may.
SECRET = re.compile(
    r"token|password|secret|settings|store|notify|docker_config|env|url|command|_redis(_found)?$|proxies|mirrors"
)


@dataclass(frozen=True)
class Kind:
    """A type in the words of argument_specs, and the limits that those have no words for."""

    type: str
    elements: str = ""
    choices: tuple = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    pattern: str = ""
    like: str = ""  # what the pattern means, for people; a number's unit
    guarded: bool = False  # a text that must not be guessed, if there is one


def problem(name, value, kind):
    """Return what is wrong with the value of a variable, one sentence without secrets, or None."""
    if value is None:
        return f"{name} is empty: give it a value, or leave the line out"
    if kind.type in _HOLDS and isinstance(value, _HOLDS[kind.type]):
        return _inner_problem(name, value, kind)
    if (
        kind.type not in _HOLDS
        and _FITS[kind.type](value, kind)
        and (not kind.choices or value in kind.choices)
    ):
        why = weakness(value) if kind.guarded and value else None
        return f"{name} {why}: {MAKE_ONE}" if why else None
    return f"{name} is {_shown(name, value)}, and must be {_expected(kind, value)}"


def _inner_problem(name, value, kind):
    inner = Kind(kind.elements or "raw", pattern=kind.pattern, like=kind.like)
    named = (
        {f"{name}.{key}": one for key, one in value.items()}
        if isinstance(value, dict)
        else {f"{name}[{place}]": one for place, one in enumerate(value)}
    )
    found = (problem(one, held, inner) for one, held in named.items() if inner.type != "raw")
    return next((why for why in found if why), None)


def _text(value, kind):
    if not isinstance(value, str) or CONTROL.search(value):
        return False
    return not kind.pattern or value == "" or re.fullmatch(kind.pattern, value) is not None


def _number(pattern, types):
    def fits(value, kind):
        if isinstance(value, str):
            if not pattern.fullmatch(value):
                return False
            value = float(value)
        elif isinstance(value, bool) or not isinstance(value, types):
            return False
        return math.isfinite(value) and kind.low <= value <= kind.high and value > kind.above

    return fits


def _bool(value, _kind):
    return isinstance(value, bool) or str(value).lower() in TRUE_OR_FALSE


def _label(value, kind):
    # YAML has read `yes`, 1.10 and 2026-01-01 as something else than what was written.
    return (isinstance(value, int) and not isinstance(value, bool)) or _text(value, kind)


_FITS = {
    "str": _text,
    "path": _text,
    "int": _number(WHOLE, int),
    "float": _number(NUMBER, (int, float)),
    "bool": _bool,
    "label": _label,
    "text or list": lambda value, _kind: (
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    ),
}


_HOLDS = {"list": list, "dict": dict}


def _shown(name, value):
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a table"
    what = {bool: "true or false", int: "a number", float: "a number", str: "a text"}.get(
        type(value), "a value"
    )
    if isinstance(value, str):
        what = "a text" if value else "empty"
    if SECRET.search(name):
        return f"{what} (not shown)" if value != "" else what
    return (
        "empty"
        if value == ""
        else f"{value!r:.60}"
        if isinstance(value, str)
        else f"{str(value).lower():.60}"
    )


def _expected(kind, value):
    if kind.choices:
        return f"one of {', '.join(kind.choices)}"
    if kind.type in ("str", "path", "text or list", "label"):
        if not isinstance(value, str):
            words = "a text or a list of texts" if kind.type == "text or list" else "a text"
            return f"{words}: put it into quotes" if not isinstance(value, (list, dict)) else words
        return kind.like or "one line of text"
    if kind.type == "bool":
        return "true or false"
    if kind.type == "list":
        return f"a list, such as [{kind.like or '…'}]"
    if kind.type == "dict":
        return f"a table, such as {{{kind.like or 'name: value'}}} (with -e as JSON)"
    words = "a whole number" if kind.type == "int" else "a number"
    return words + (f" of {kind.like}" if kind.like else "") + _range(kind)


def _range(kind):
    if kind.above > -math.inf:
        return f" above {kind.above:g}" + (f", at most {kind.high:g}" if kind.high < math.inf else "")
    if kind.high < math.inf:
        return f", {kind.low:.15g} to {kind.high:.15g}"
    return f", at least {kind.low:g}" if kind.low > -math.inf else ""
