"""Configuration files: where they are looked for, how they are read, and how a bad one is told.

A program's settings are one frozen pydantic model. `load` turns a TOML file (and `IDM_GRIDCORE_<KEY>`
variables, which win) into it, or raises ConfigError with one line for each thing that is wrong.
"""

from __future__ import annotations

import difflib
import os
import secrets
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError

from gridcore.errors import ConfigError
from gridcore.files import is_there, resolve, write_private
from gridcore.json_values import is_text
from gridcore.masking import mask_text

M = TypeVar("M", bound=BaseModel)

CONFIG_VARIABLE = "IDM_GRIDCORE_CONFIG"
ENV_PREFIX = "IDM_GRIDCORE_"
LIKENESS = 0.85
"""Of the names of two keys, 1 being the same: from here on one is the other misspelt."""
_SECRET_KEYS = ("token", "password", "secret", "notify")


def candidates(file_name: str, env: Mapping[str, str] = os.environ) -> list[Path]:
    """Where `file_name` is looked for when no `--config` is given, best first."""
    if env.get(CONFIG_VARIABLE):
        return [Path(_text(env[CONFIG_VARIABLE]))]
    home = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else Path.home() / ".config"
    return [home / "idm-gridcore" / file_name, Path("/etc/idm-gridcore") / file_name]


def default_path(file_name: str, env: Mapping[str, str] = os.environ) -> Path:
    """Where a first file belongs: root's (a service) or a person's own."""
    paths = candidates(file_name, env)
    return paths[-1] if os.geteuid() == 0 else paths[0]


def find(file_name: str, explicit: Path | None, env: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file to use, or None if there is none yet."""
    if explicit is not None:
        return explicit
    for path in candidates(file_name, env):
        try:
            if is_there(path):
                return path
        except OSError:  # a service's own directory: not for this user
            if env.get(CONFIG_VARIABLE):  # the one that was named: who reads it tells why not
                return path
    return None


def is_written(path: Path) -> bool:
    """Whether there is such a file. Raises ConfigError where this user cannot tell."""
    try:
        return is_there(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_shown(path)}: cannot be read: {_reason(error)}") from None


def read_text(path: Path) -> str:
    """The file's text; ConfigError if it cannot be read.

    A byte order mark, which editors on Windows put first, is no part of it.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_shown(path)}: cannot be read: {_reason(error)}") from None


def _shown(path: Path) -> str:
    return str(path).replace("\0", "\\0")


def _reason(error: OSError | ValueError) -> str:
    """What hinders: a sentence's end."""
    if isinstance(error, PermissionError):
        return f"{error.strerror}; run it as the user whom the file belongs to, or with sudo"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no path has a null character"


def _can_be_a_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("expected a path, and no path has a null character")
    return path


FilePath = Annotated[Path, AfterValidator(_can_be_a_path)]
"""A path in a configuration file: TOML can hold what no file can be called."""


def load(model: type[M], path: Path, env: Mapping[str, str] = os.environ) -> M:
    """Settings from a TOML file and the environment.

    Raises:
        ConfigError: one line for each bad key, naming file (or variable), key and what was expected.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None
    if model.model_config.get("extra") == "forbid":
        _refuse_misspelt(model, env)
    given = {
        key: value for key in model.model_fields if (value := read_variable(model, key, env)) is not None
    }
    try:
        return model.model_validate(values | given)
    except ValidationError as error:
        lines = [_line(path, model, dict(problem), given) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def open_warning(path: Path) -> str | None:
    """What to say of a file with secrets that everybody on this machine can read, or None. No error: it may
    be in a directory that few may enter. It was loaded a moment ago."""
    try:
        mode = path.stat().st_mode
        values = tomllib.loads(read_text(path))
    except (OSError, ConfigError, tomllib.TOMLDecodeError):
        return None
    if not (stat.S_ISREG(mode) and mode & stat.S_IROTH and any(map(_is_secret, values, values.values()))):
        return None
    return f"everybody on this machine can read {path}, and it holds a secret; `chmod 600` it"


def _is_secret(key: str, value: Any) -> bool:
    """Whether this key of a file says what others must not know: a token, or a URL with a password in it."""
    if isinstance(value, str) and "://" in value and "@" in value:
        return True
    return isinstance(value, str | list) and any(word in key for word in _SECRET_KEYS)


def variable_of(key: str) -> str:
    """The variable of the environment that sets a key."""
    return ENV_PREFIX + key.upper()


def read_variable(model: type[BaseModel], key: str, env: Mapping[str, str] = os.environ) -> Any:
    """What the environment says of a key of this model, or None: for all programs the same.

    A key that holds text takes the text as it stands, digits too; all others are read as in the file. Quotes
    around a value are not part of it: shells take them away, and env files leave them.

    Raises:
        ConfigError: it is not UTF-8.
    """
    text = env.get(variable_of(key))
    if text is None or variable_of(key) == CONFIG_VARIABLE:
        return None
    if not is_text(text):
        raise ConfigError(f"{variable_of(key)} (environment): expected text in UTF-8")
    return _text(text) if _is_text_key(model.model_fields[key].annotation) else _toml_value(text)


def _refuse_misspelt(model: type[BaseModel], env: Mapping[str, str]) -> None:
    """Raises ConfigError for a variable that is all but one of ours; any other may be another program's."""
    for name in sorted(env):
        key = name.removeprefix(ENV_PREFIX).lower()
        if not name.startswith(ENV_PREFIX) or key in model.model_fields or name == CONFIG_VARIABLE:
            continue
        if near := difflib.get_close_matches(key, model.model_fields, 1, cutoff=LIKENESS):
            raise ConfigError(
                f"{name} (environment): no key is called so; did you mean {variable_of(near[0])}?"
            )


def _text(written: str) -> str:
    """A value without the quotes that an env file leaves around it."""
    value = _toml_value(written)
    return value if isinstance(value, str) else written


def _is_text_key(annotation: Any) -> bool:
    """Whether a key of this type is never anything but text."""
    kinds = get_args(annotation)
    if get_origin(annotation) is Literal:
        return all(isinstance(kind, str) for kind in kinds)
    if get_origin(annotation) is Annotated:
        return _is_text_key(kinds[0])
    if kinds and get_origin(annotation) in (Union, UnionType):
        return all(kind is NoneType or _is_text_key(kind) for kind in kinds)
    return isinstance(annotation, type) and issubclass(annotation, str | Path)


def _toml_value(text: str) -> Any:
    """`4` is a number and `[1]` a list, as in the file; what is not TOML is a string."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text  # a line break in it would begin another key


def _line(path: Path, model: type[BaseModel], problem: dict[str, Any], given: Mapping[str, Any]) -> str:
    expected = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # keys that do not fit each other: the text names them, the input is all of it
        variables = "".join(f" and {variable_of(key)}" for key in given)
        return f"{path}{variables}: {expected}"
    key = ".".join(str(part) for part in problem["loc"])
    where = f"{variable_of(problem['loc'][0])} (environment)" if problem["loc"][0] in given else str(path)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(model.model_fields)}"
        return f"{where}: {key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{where}: {key}: missing, and there is no default"
    # A table may hold secrets wherever it likes; the URLs of chats are secrets as a whole.
    is_shown = not (isinstance(problem["input"], dict) or any(word in key for word in _SECRET_KEYS))
    got = f" (got {mask_text(repr(problem['input'])):.80})" if is_shown else ""
    return f"{where}: {key}: {expected}{got}"


def new_token() -> str:
    """A fresh shared secret, 256 bits."""
    return secrets.token_urlsafe(32)


def init_file(path: Path, text: str) -> None:
    """Write a first configuration file, never over an existing one.

    Raises:
        ConfigError: it exists, or the directory cannot be made or written.
    """
    try:
        if is_there(path):
            raise ConfigError(f"{path}: exists already; edit it, or move it away first")
        resolve(path).parent.mkdir(parents=True, exist_ok=True)
        write_private(path, text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_shown(path)}: cannot be written: {_reason(error)}") from None
