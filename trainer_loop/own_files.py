"""Finds the Python files of the user, that is, files that are not installed, without importing them."""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from trainer_loop.search_path import is_installed


def is_own(file: str) -> bool:
    """Return whether a file is the user's: neither installed nor part of this package."""
    return not is_installed(file) and not Path(file).is_relative_to(Path(__file__).parent)


def find_own_files(modules: Iterable[str]) -> dict[str, Path]:
    """Return the files of the user's modules by name: of `modules`, and of everything that they import.

    Imports inside functions count, too. Imports by a computed name are not found. The packages that contain a module
    count as imported with it.
    """
    queue, seen, files = list(modules), set[str](), dict[str, Path]()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        queue += [name.rpartition(".")[0]] if "." in name else []
        spec = _find_own(name)
        if spec is not None and spec.origin is not None:
            files[name] = Path(spec.origin)
            queue += _list_imports(files[name], package=spec.parent or "")
    return dict(sorted(files.items()))


def _find_own(name: str) -> ModuleSpec | None:
    """Return the spec of a module if it is the user's, else None."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was created in memory
        return None
    for part in parts:
        if spec is None or spec.submodule_search_locations is None or not _is_own_spec(spec):
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec if spec is not None and _is_own_spec(spec) else None


def _is_own_spec(spec: ModuleSpec) -> bool:
    if spec.origin is not None:
        return spec.has_location and is_own(spec.origin)
    return any(is_own(folder) for folder in spec.submodule_search_locations or ())  # a package without __init__.py


def _list_imports(file: Path, *, package: str) -> list[str]:
    """Return the full names that a file imports. `from a import b` gives a and a.b, because b may be a module."""
    if file.suffix != ".py":
        return []
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # the import itself reports these
        return []
    return [name for node in ast.walk(tree) for name in _read_import(node, package)]


def _read_import(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        try:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError:  # a relative import that leaves the top package
            return
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
