"""A name in the configuration -> a class: a built-in name, ``package.module:Class``, or ``path/to/file.py:Class``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnbench.errors import DnnbenchError

# What the modules of users' files are called: this, the file's name and a hash of its path.
USER_MODULE = "dnnbench_user_"


class PluginError(DnnbenchError):
    """A class that the configuration names cannot be used."""


class OtherFrameworkError(PluginError):
    """The class is the right kind of thing, for another framework than this one."""


def load_class(key: str, name: str, builtins: Mapping[str, str], base: type) -> Any:
    """The class that ``name`` means; ``key`` is the configuration's, ``builtins`` maps names to ``module:Class``.

    Raises `PluginError` where nothing of that name is found or it is no subclass of ``base``. What
    the user's own file raises while it is imported comes through as it is, with its traceback.
    """
    target = builtins.get(name, name)
    module_name, colon, class_name = target.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name, builtins, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise PluginError(
            f'{key}: found "{name}", expected one of {", ".join(builtins)}, "package.module:Class" '
            f'or "path/to/file.py:Class"{hint}'
        )
    if not module_name.endswith(".py") and not all(part.isidentifier() for part in module_name.split(".")):
        raise PluginError(f'{key}: "{module_name}" is neither the name of a module nor a file that ends in .py')
    module = load_file(key, Path(module_name)) if module_name.endswith(".py") else _import(key, module_name)
    found = getattr(module, class_name, None)
    if found is None:
        classes = [n for n, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(class_name, classes, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise PluginError(f'{key}: "{module_name}" has no class "{class_name}"{hint}')
    if not (isinstance(found, type) and issubclass(found, base)):
        wrong = f'{key}: "{name}" must be a subclass of {base.__module__}.{base.__qualname__}'
        if isinstance(found, type) and _is_of_a_sibling(found, base):
            raise OtherFrameworkError(f"{wrong}; it is another framework's: set framework.name to the one it is for")
        raise PluginError(wrong)
    return found


def _is_of_a_sibling(found: type, base: type) -> bool:
    """Whether a class descends from the base's namesake beside it, which is another framework's."""
    package = base.__module__.rpartition(".")[0]
    return any(
        kind.__name__ == base.__name__
        and kind.__module__ != base.__module__
        and kind.__module__.rpartition(".")[0] == package
        for kind in found.__mro__
    )


def absolute(name: str) -> str:
    """The name, with the path of a user's file made absolute, so that it holds in any folder."""
    module_name, colon, class_name = name.rpartition(":")
    if not (colon and module_name.endswith(".py")):
        return name
    return f"{Path(module_name).expanduser().resolve()}:{class_name}"


def construct(kind: Any, *arguments: Any, **known: Any) -> Any:
    """An instance made with ``arguments``, and with those of ``known`` that its constructor names.

    A user's class takes what the seed document shows; the built-in ones take more.
    """
    parameters = _parameters(kind)
    return kind(*arguments, **{name: value for name, value in known.items() if name in parameters})


def _parameters(kind: Any) -> set[str]:
    """What a constructor names, and what its bases' name where it hands options on to them."""
    if not isinstance(kind, type):
        return set(inspect.signature(kind).parameters)
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= set(parameters)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def _import(key: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # Only the named module itself; one that it imports in vain is for its author to see.
        if exc.name and (name == exc.name or name.startswith(exc.name + ".")):
            raise PluginError(f'{key}: there is no module "{exc.name}" on the path') from exc
        raise


def load_file(key: str, path: Path) -> Any:
    """The module in a user's file, imported once per process under a name that is the same in all of them."""
    try:
        path = path.expanduser().resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as exc:
        raise PluginError(f"{key}: {path}: {exc}") from exc
    if not found:
        raise PluginError(f"{key}: {path}: there is no such file")
    # What lies beside a script can be imported from it, so too from here.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # One name per file, the same in every process, so that what it defines can be found again there.
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{USER_MODULE}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{key}: {path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
