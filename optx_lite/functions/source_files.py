"""Which source files are the user's own, and which belong to an installed library."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig

import equinox as eqx
import jax
import numpy as np


def _folder(file: str | None) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(file or "")), "")


# What only a new version changes: the functions in it are what their code says.
_FIXED_FOLDERS = (_folder(jax.__file__), _folder(os.path.dirname(__file__)))


def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {
        path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")
    }
    folders = {os.path.join(os.path.realpath(folder), "") for folder in folders}
    # Wherever else they may be installed. This package, too, is a library to its user.
    return (*sorted(folders), *_FIXED_FOLDERS, _folder(np.__file__), _folder(eqx.__file__))


_LIBRARY_FOLDERS = _library_folders()


@functools.lru_cache(maxsize=4096)
def is_library_file(filename: str) -> bool:
    """Whether a source file belongs to an installed library, not to the user."""
    if filename.startswith("<"):  # a notebook's cell, the prompt, exec
        return filename.startswith("<frozen ")
    return os.path.realpath(filename).startswith(_LIBRARY_FOLDERS)


@functools.lru_cache(maxsize=4096)
def is_fixed_file(filename: str) -> bool:
    """Whether it belongs to JAX or to this package."""
    return not filename.startswith("<") and os.path.realpath(filename).startswith(_FIXED_FOLDERS)
