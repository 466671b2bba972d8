"""The user's own files: what nobody installed, and what they import of each other. Nothing is imported here."""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from trainer_loop.search_path import is_installed


def is_own(file: str) -> bool:
    """Whether a file is the user's: neither installed, nor of this package."""
    return not is_installed(file) and not Path(file).is_relative_to(Path(__file__).parent)


def find_own_files(modules: Iterable[str]) -> dict[str, Path]:
    """The files of the user's modules among these, and of those that they import, directly or not, by name.

    An import counts wherever it stands, inside of a function too. Modules that are imported by a name that is computed
    are not found. Packages that contain a module count as imported with it.
    """
    waiting, seen, files = list(modules), set[str](), dict[str, Path]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        spec = _find_own(name)
        if spec is not None and spec.origin is not None:
            files[name] = Path(spec.origin)
            waiting += _list_imports(files[name], package=spec.parent or "")
    return dict(sorted(files.items()))


def _find_own(name: str) -> ModuleSpec | None:
    """Where a module of the user's is; None if it is another's, or none."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made in memory
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
    """The full names of what a Python file imports; of `from a import b` both a and a.b, for b may be a module."""
    if file.suffix != ".py":
        return []
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # which importing it reports
        return []
    return [name for node in ast.walk(tree) for name in _read_import(node, package)]


def _read_import(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        try:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError:  # beyond the package
            return
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
