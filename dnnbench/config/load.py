"""Reads a configuration file, replaces ``${ENV}``, applies ``KEY=VALUE`` settings, and words the errors.

The keys themselves are in `model`.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dnnbench.config.model import Config, ConfigError

SECRETS = ("access_key", "secret_key", "session_token")
_SECRET_SETTING = re.compile(rf"\b({'|'.join(SECRETS)})=\S+")
_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# A string, or one of the remarks that people put behind a value: "// why" and the seed's "<<=== why".
_STRING_OR_REMARK = re.compile(r'("(?:\\.|[^"\\\n])*")|(//[^\n]*|<[ <]*==*[^\n]*)')
# A string, a comma with nothing before it, or one with nothing behind it, as the seed's fragments have them.
_STRING_OR_SPARE_COMMA = re.compile(r'("(?:\\.|[^"\\\n])*"|[{\[,]\s*,)|,(?=\s*[}\]])')


@dataclass(frozen=True)
class Variant:
    """One configuration of a run: ``swept`` holds the settings that differ between the variants."""

    config: Config
    swept: tuple[tuple[str, str], ...] = ()


def load_config(path: Path | None) -> dict[str, Any]:
    """The file's content as a plain dictionary, without comments and with ``${ENV}`` replaced.

    Raises `ConfigError` for a file that is missing, is not JSON, or names an unset variable.
    `expand_settings` validates what this returns.
    """
    if path is None:
        return {}
    data = _read(path)
    try:
        return typing.cast(dict[str, Any], _clean(data, ""))
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc


def exposed_secrets(path: Path | None, settings: Sequence[str] = ()) -> list[str]:
    """Warnings, of a line each, for secrets that other users of this machine can read.

    They are in the file, which others may read, or in ``KEY=VALUE`` settings of a command line, which anybody sees.
    ``${ENV}`` in the place of a secret is none. Raises `ConfigError`, as `load_config` does.
    """
    told = []
    mode = path.stat().st_mode & 0o777 if path is not None and path.exists() else 0
    if path is not None and mode & 0o077 and _holds_secret(_read(path)):
        told.append(
            f"{path}: holds secrets, and others can read it (mode {mode:03o}): chmod 600 it, or write "
            '"${NAME}" for a variable of the environment'
        )
    for setting in settings:
        key, _, value = setting.partition("=")
        if _names_secret(key) and not _ENV.fullmatch(value):
            told.append(f"{key}: a secret on the command line, which all users of this machine see: write '${{NAME}}'")
    return told


def _names_secret(key: str) -> bool:
    """Whether a dotted path names a secret."""
    return key.rpartition(".")[2] in SECRETS


def without_secrets(text: str) -> str:
    """The text of a command line, or of what is wrong with it, with ``***`` for what it sets secrets to."""
    return _SECRET_SETTING.sub(r"\1=***", text)


def _holds_secret(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_secret(item) for item in value)
    if not isinstance(value, dict):
        return False
    return any(
        (key in SECRETS and isinstance(inner, str) and bool(inner) and not _ENV.fullmatch(inner))
        or _holds_secret(inner)
        for key, inner in value.items()
    )


def _read(path: Path) -> dict[str, Any]:
    """The file's content as it is written, comments and remarks in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as a text file ({exc})") from exc
    plain = _STRING_OR_REMARK.sub(lambda m: m[1] or " " * len(m[2]), text)
    plain = _STRING_OR_SPARE_COMMA.sub(lambda m: m[1] or " ", plain)
    try:
        data = json.loads(plain, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path}:{exc.lineno}:{exc.colno}: not valid JSON: {exc.msg}") from exc
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f'{path}: found {_kind(data)}, expected an object with keys such as "storage"')
    return typing.cast(dict[str, Any], data)


def expand_settings(
    data: dict[str, Any], settings: Sequence[str], source: str = "", option: str = "--dnn-set"
) -> list[Variant]:
    """The configurations that ``data`` and the ``KEY=VALUE[,VALUE…]`` settings make: one per combination.

    ``source`` (the file's path) and ``option`` (that gives settings) are named in errors. Raises `ConfigError`.
    """
    axes: dict[str, list[Any]] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if not key or not text:
            # What stands behind the key may be a secret.
            shown = re.split(r"[=\s]", setting, maxsplit=1)[0]
            raise ConfigError(f"{option} {shown}: expected KEY=VALUE or KEY=VALUE,VALUE")
        axes[key] = [_parse_value(key, piece) for piece in _split_values(text)]
        if len(axes[key]) > 1 and _names_secret(key):
            # It would be shown in the ids and in the record.
            raise ConfigError(f"{option} {key}: a secret takes one value")
    variants = []
    for values in itertools.product(*axes.values()):
        changed = json.loads(json.dumps(data))
        for key, value in zip(axes, values, strict=True):
            _set(changed, key, value, option)
        swept = tuple((k, _spell(v)) for k, v in zip(axes, values, strict=True) if len(axes[k]) > 1)
        variants.append(Variant(_validate(changed, source), swept))
    return variants


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result and not key.startswith("__"):
            raise ConfigError(f'the key "{key}" is there twice in one object')
        result[key] = value
    return result


def _clean(value: Any, path: str) -> Any:
    """Drops ``__comment`` keys and replaces ``${ENV}`` in strings."""
    if isinstance(value, dict):
        return {k: _clean(v, f"{path}.{k}".lstrip(".")) for k, v in value.items() if not k.startswith("__")}
    if isinstance(value, list):
        return [_clean(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str):
        return _ENV.sub(lambda m: _environment(m[1], path), value)
    return value


def _environment(name: str, path: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise ConfigError(f"{path}: the environment variable {name} is not set") from None


def _validate(data: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as exc:
        # One line: the first error, and how many more there are.
        errors = exc.errors(include_url=False)
        text = _describe(_meant(errors))
        others = len({_path(error["loc"]) for error in errors}) - 1
        more = f" (and {others} more)" if others else ""
        where = f"{source}: " if source else ""
        raise ConfigError(f"{where}{text}{more}") from None


def _meant(errors: Sequence[Any]) -> Any:
    """The first error; where its value may be one thing or another, that of the one which came closest."""
    first = _path(errors[0]["loc"])
    of_it = [error for error in errors if _path(error["loc"]).startswith(first)]
    return max(of_it, key=lambda error: (len(_own_parts(error["loc"])), error["type"] == "value_error"))


def _describe(error: Any) -> str:
    """One pydantic error in our words: path, what was found, what is expected, the nearest key."""
    loc = _own_parts(error["loc"])
    path = _path(error["loc"])
    if error["type"] == "extra_forbidden":
        parent = _model_at(loc[:-1])
        return f"{path}: unknown key{_nearest(str(loc[-1]), parent)}"
    expected = re.sub(r"^(Value error, |\w+ should (be|have) )", "", error["msg"]).partition(" after validation")[0]
    if error["type"] == "value_error":
        return f"{path}: expected {expected}"
    # Also where an account or its credentials are something else than an object.
    secret = any(part in (*SECRETS, "credentials", "aws", "dss") for part in loc)
    found = _kind(error["input"]) if secret else f"{_kind(error['input'])} {_short(error['input'])}".rstrip()
    return f"{path}: found {found}, expected {expected}"


def _own_parts(loc: Sequence[Any]) -> list[Any]:
    """A pydantic path without the members of unions that it names below a key."""
    parts: list[Any] = []
    model: Any = Config
    for part in loc:
        if isinstance(part, int):
            parts.append(part)
        elif isinstance(model, type) and issubclass(model, BaseModel):
            parts.append(part)
            model = _fields(model).get(part)
    return parts


def _path(loc: Sequence[Any]) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in _own_parts(loc))
    return text.removeprefix(".") or "the configuration"


def _model_at(loc: Sequence[Any]) -> type[BaseModel] | None:
    """The model that a path leads to, or None where it leads to no model."""
    model: Any = Config
    for part in loc:
        fields = _fields(model)
        if part not in fields:
            return None
        model = fields[part]
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    return typing.cast("type[BaseModel]", model)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _nearest(key: str, model: type[BaseModel] | None) -> str:
    if model is None:
        return ""
    known = list(_fields(model))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else f"; known here: {', '.join(known)}"


def _set(data: dict[str, Any], key: str, value: Any, option: str) -> None:
    """Sets a dotted path; the path must be one of the model's. A list takes a single value as its one item."""
    parts = key.split(".")
    annotation: Any = Config
    for i, part in enumerate(parts):
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            raise ConfigError(f"{option} {key}: {'.'.join(parts[:i])} has no keys below it")
        fields = _fields(annotation)
        if part not in fields:
            raise ConfigError(f"{option} {key}: unknown key{_nearest(part, annotation)}")
        annotation = fields[part]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        raise ConfigError(f"{option} {key}: is a section; set one of {', '.join(_fields(annotation))}")
    if typing.get_origin(annotation) is list and not isinstance(value, list):
        value = [value]
    node = data
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{option} {key}: the file has {_kind(node)} at {part}")
    node[parts[-1]] = value


def _split_values(text: str) -> Iterator[str]:
    """Splits at commas that are outside of brackets and quotes."""
    depth, quoted, escaped, start = 0, False, False, 0
    for i, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "[{":
            depth += 1
        elif not quoted and char in "]}":
            depth -= 1
        elif char == "," and depth == 0 and not quoted:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def _parse_value(key: str, text: str) -> Any:
    """A value as JSON where it is JSON; a list of words where a shell has eaten its quotes; otherwise a string."""
    value = _json_or_text(text)
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = [_json_or_text(piece.strip()) for piece in _split_values(value[1:-1])]
    return _clean(value, key)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _spell(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(_spell(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "the string", bool: "the boolean", type(None): "null"}
    return names.get(type(value), "the number")


def _short(value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        return ""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
