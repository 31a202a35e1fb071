"""Packages that only some experiments need: imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def imported(package: str, what_for: str, install: str = "") -> ModuleType:
    """A package, or an error that names what needs it.

    Raises:
        ImportError: it is not there, or does not work: torchvision raises a RuntimeError where it does not fit torch.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"{what_for}: needs {package} ({error}); pip install {install or package}") from error
