"""Objects by name, ``module:name``, as a command line can say them."""

import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UsageError(Exception):
    """The command line asks for what cannot be."""


def made(name: str, option: str) -> Any:
    """What a name on the command line stands for; a function or a class is called, but a model that takes arguments is not."""
    found = named(name, option)
    if not (inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial)):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        if option == "--model" and not inspect.isclass(found):
            return found
        raise UsageError(f"{option} {name} is called without arguments, but {error}; name a function that makes it") from None
    return found()


def named(name: str, option: str) -> Any:
    """An object by ``module:name``."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise UsageError(f"{option} must be module:name, such as my_code:thing, got {name!r}")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that this one needs
        raise UsageError(f"{option}: there is no module {error.name!r} in this folder or among the installed ones") from None
    except Exception as error:
        raise ImportError(f"{option}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 1)
            raise UsageError(f"{option}: {module} has no {part!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        found = getattr(found, part)
    return found


@contextmanager
def this_folder_first() -> Iterator[None]:
    """Modules of the current folder can be imported."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
