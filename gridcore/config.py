"""Configuration files: where they are looked for, how they are read, and how a bad one is told.

A program's settings are one frozen pydantic model. `load` turns a TOML file (and `IDM_GRIDCORE_<KEY>`
variables, which win) into it, or raises ConfigError with one line for each thing that is wrong.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gridcore.errors import ConfigError
from gridcore.files import resolve, write_private
from gridcore.masking import mask_text

M = TypeVar("M", bound=BaseModel)

CONFIG_VARIABLE = "IDM_GRIDCORE_CONFIG"
ENV_PREFIX = "IDM_GRIDCORE_"
_SECRET_KEYS = ("token", "password", "secret", "notify")
PLACEHOLDER_TOKENS = frozenset(
    {"your-secret-token", "your-token", "changeme", "change-me", "secret", "token", "password", "test", "xxx"}
)
"""Tokens that stand in documentation: a hub with one of them is open to everybody who can read."""


def candidates(file_name: str, env: Mapping[str, str] = os.environ) -> list[Path]:
    """Where `file_name` is looked for when no `--config` is given, best first."""
    if env.get(CONFIG_VARIABLE):
        return [Path(env[CONFIG_VARIABLE])]
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
        with contextlib.suppress(PermissionError):  # a service's own directory: not for this user
            if path.exists():
                return path
    return None


def read_text(path: Path) -> str:
    """The file's text; ConfigError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def load(model: type[M], path: Path, env: Mapping[str, str] = os.environ) -> M:
    """Settings from a TOML file and the environment.

    Raises:
        ConfigError: one line for each bad key, naming file, key and what was expected.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key in model.model_fields:
        variable = ENV_PREFIX + key.upper()
        if variable != CONFIG_VARIABLE and variable in env:
            values[key] = _toml_value(env[variable])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_line(path, model, dict(problem)) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def _toml_value(text: str) -> Any:
    """`4` is a number and `[1]` a list, as in the file; what is not TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _line(path: Path, model: type[BaseModel], problem: dict[str, Any]) -> str:
    expected = problem["msg"].removeprefix("Value error, ")
    if not problem[
        "loc"
    ]:  # keys that do not fit each other: the text names them, the input is the whole file
        return f"{path}: {expected}"
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(model.model_fields)}"
        return f"{path}: {key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{path}: {key}: missing, and there is no default"
    # A table may hold secrets wherever it likes; the URLs of chats are secrets as a whole.
    is_shown = not (isinstance(problem["input"], dict) or any(word in key for word in _SECRET_KEYS))
    got = f" (got {mask_text(repr(problem['input'])):.80})" if is_shown else ""
    return f"{path}: {key}: {expected}{got}"


def new_token() -> str:
    """A fresh shared secret, 256 bits."""
    return secrets.token_urlsafe(32)


def init_file(path: Path, text: str) -> None:
    """Write a first configuration file, never over an existing one.

    Raises:
        ConfigError: it exists, or the directory cannot be made or written.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; edit it, or move it away first")
    try:
        resolve(path).parent.mkdir(parents=True, exist_ok=True)
        write_private(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
