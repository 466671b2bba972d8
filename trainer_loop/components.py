"""Resolves names and dotted paths to objects, and checks their arguments before they are called.

A dotted path imports, and so runs, the modules on it. In a config only dotted paths, `model.trust_remote_code` and
metric scripts run code.
"""

import importlib
import importlib.util
import inspect
import numbers
import pkgutil
import sys
import traceback
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, TypeVar, cast, get_args

from trainer_loop.errors import UserError, displayed, refuse, suggest
from trainer_loop.own_files import is_own
from trainer_loop.search_path import insert_after_installed, is_installed

_T = TypeVar("_T")

# Plain types of annotations, and their names in messages.
_PLAIN_TYPES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}


def refuse_less(values: Mapping[str, int], least: Mapping[str, int], *, place: str) -> None:
    """Raise UserError for all values, by name, that are smaller than `least` allows."""
    problems = [
        f"{place}.{name}: {value}; it must be {least[name]} or more"
        for name, value in values.items()
        if value < least[name]
    ]
    refuse(problems)


def refuse_others(values: Mapping[str, object], allowed: Mapping[str, Sequence[object]], *, place: str) -> None:
    """Raise UserError for all values, by name, that are not among the `allowed` ones."""
    problems = [
        f"{place}.{name}: {value}; it must be {' or '.join(map(str, allowed[name]))}"
        for name, value in values.items()
        if value not in allowed[name]
    ]
    refuse(problems)


def choose(name: str, table: Mapping[str, _T], *, place: str) -> _T:
    """Return the entry of `table`, or the object at a dotted path.

    Args:
        place: The config key that holds the name, for messages.

    Raises:
        UserError: The name is not in the table; the message lists those that are. Or `locate` fails.
    """
    if name in table:
        return table[name]
    if "." in name:
        return cast(_T, locate(name, place=place))
    raise UserError(
        f"{place} is {name!r}; allowed: {', '.join(sorted(table))}, or a dotted path such as my_lab.parts.mine"
        + suggest(name, table)
    )


def locate(dotted: str, *, place: str) -> object:
    """Import the object at a dotted path such as `my_lab.losses.focal`, also from the current directory.

    Args:
        place: The config key that holds the path, for messages.

    Raises:
        UserError: The path is malformed, a part of it does not exist, or a module on it fails on import. The message
            is one line, and names the failing line of the user's file.
    """
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{place} is {dotted!r}; a dotted path names a module and what is in it: my_lab.losses.focal")
    if not {"", str(Path.cwd())} & set(sys.path):
        insert_after_installed(str(Path.cwd()))
    importlib.invalidate_caches()
    target: object = _import(parts[0], dotted=dotted, place=place)
    for depth, part in enumerate(parts[1:], start=1):
        target = _member(target, part, path=".".join(parts[:depth]), dotted=dotted, place=place)
    if isinstance(target, ModuleType):
        members = {name: getattr(vars(target).get(name), "__module__", "") for name in _public_names(target)}
        names = ", ".join(name for name, origin in members.items() if origin == target.__name__) or "nothing"
        raise UserError(f"{place}: {dotted} is a module; name what to take from it: {names}")
    return target


def _member(owner: object, name: str, *, path: str, dotted: str, place: str) -> object:
    """Return an attribute of a module or class, or the submodule of that name."""
    try:
        return getattr(owner, name)
    except AttributeError:
        pass  # it may be a submodule that is not imported yet
    except Exception as error:  # the __getattr__ of a module may import more
        raise UserError(_import_failure(error, dotted=dotted, place=place)) from error
    if not isinstance(owner, ModuleType):
        raise UserError(f"{place}: {dotted}: {path} has no {name}{suggest(name, _public_names(owner))}")
    submodule = f"{owner.__name__}.{name}"
    if hasattr(owner, "__path__") and importlib.util.find_spec(submodule):
        return _import(submodule, dotted=dotted, place=place)
    where = f"{path} ({displayed(owner.__file__)})" if owner.__file__ else path
    known = [*_public_names(owner), *_module_names(getattr(owner, "__path__", []))]
    raise UserError(f"{place}: {dotted}: {where} has no {name}{suggest(name, known)}")


def locate_source(function: Callable[..., Any]) -> str:
    """Return the name and first line of a function: `MyTask.loss (my_lab/tasks.py:12)`."""
    name = getattr(function, "__qualname__", repr(function))
    code = getattr(inspect.unwrap(function), "__code__", None)
    return name if code is None else f"{name} ({displayed(code.co_filename)}:{code.co_firstlineno})"


def fingerprint_own(component: object) -> str | None:
    """Return file name and checksum of the source of the user's class or function; None if it is not the user's."""
    try:
        file, source = inspect.getsourcefile(component), inspect.getsource(component)  # type: ignore[arg-type]
    except (TypeError, OSError):
        return None
    if file is None or not is_own(file):
        return None
    return f"{Path(file).name} {zlib.crc32(source.encode()):08x}"


def describe_own_line(error: BaseException) -> str | None:
    """Return the innermost line of user code in the traceback, with the error; None if there is no user code in it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_file() and is_own(frame.filename):
            message = str(error).strip().partition("\n")[0]
            return f"{displayed(frame.filename)}:{frame.lineno}: {type(error).__name__}: {message}"
    return None


def _import(module: str, *, dotted: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module and "." not in module:
            hint = suggest(module, _module_names([str(Path.cwd())]))
            reason = f"there is no module {module}, installed or in the current directory{hint}"
            raise UserError(f"{place}: {dotted}: {reason}") from error
        raise UserError(_import_failure(error, dotted=dotted, place=place)) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UserError(_import_failure(error, dotted=dotted, place=place)) from error


def _import_failure(error: BaseException, *, dotted: str, place: str) -> str:
    """Describe an error during import: file, line, type and message."""
    if isinstance(error, SyntaxError) and error.filename:
        where, message = f"{displayed(error.filename)}:{error.lineno}: ", error.msg
    else:
        stack = traceback.extract_tb(error.__traceback__)
        machinery = (__file__, importlib.__file__)
        frames = [at for at in stack if not at.filename.startswith("<frozen ") and at.filename not in machinery]
        user_frames = [frame for frame in frames if not is_installed(frame.filename)] or frames
        where = f"{displayed(user_frames[-1].filename)}:{user_frames[-1].lineno}: " if user_frames else ""
        message = str(error)
    first_line = message.strip().partition("\n")[0]
    return f"{place}: {dotted} cannot be imported: {where}{type(error).__name__}: {first_line}"


def _module_names(directories: Iterable[str]) -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(list(directories))]


def _public_names(owner: object) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def full_name(function: Callable[..., Any]) -> str:
    """Return the dotted path of a function or class."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(function)


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, object], *, place: str, given: Collection[str]
) -> list[str]:
    """Return the problems of calling `function(**arguments)`, one line each.

    A function without a readable signature, such as some built-ins, has no problems.

    Args:
        place: The config key of the arguments, for messages.
        given: Names of arguments that the caller adds itself. The function need not have them.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
    return check_parameters(parameters, arguments, name=full_name(function), place=place, given=given)


def check_parameters(
    parameters: Iterable[inspect.Parameter],
    arguments: Mapping[str, object],
    *,
    name: str,
    place: str,
    given: Collection[str] = (),
) -> list[str]:
    """Do the same as `check_arguments` for a function `name` with these parameters."""
    parameters = list(parameters)
    by_keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    allowed = [p.name for p in by_keyword if p.name not in given]
    problems = []
    for argument in arguments:
        if argument in given and (takes_any or any(p.name == argument for p in by_keyword)):
            problems.append(f"{place}.{argument}: {name} is given {argument} by the trainer itself; remove it here")
        elif argument not in allowed and not takes_any:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes no arguments"
            problems.append(
                f"{place}.{argument}: {name} has no argument {argument}; {takes}{suggest(argument, allowed)}"
            )
    problems += [
        f"{place}.{parameter.name}: {fault}"
        for parameter in by_keyword
        if parameter.name in arguments and parameter.name in allowed
        if (fault := _explain_type(arguments[parameter.name], parameter)) is not None
    ]
    for parameter in by_keyword:
        if parameter.default is parameter.empty and parameter.name not in {*arguments, *given}:
            problems.append(f"{place}: {name} needs an argument {parameter.name}; set {place}.{parameter.name}")
    return problems


def _explain_type(value: object, parameter: inspect.Parameter) -> str | None:
    """Explain why `value` does not match the annotation; None if it does, or if the annotation is no plain type.

    A value that has the type of the default is always accepted.
    """
    annotation = parameter.annotation
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if not all(isinstance(kind, type) and kind in _PLAIN_TYPES for kind in kinds):
        return None
    if type(value) is type(parameter.default) or any(_is_of(value, kind) for kind in kinds):
        return None
    shown = "null" if value is None else repr(value)
    return f"{shown} is not {' or '.join(_PLAIN_TYPES[kind] for kind in kinds)}"


def _is_of(value: object, kind: type) -> bool:
    """Return whether a value has a plain type. An int is also a float; a bool is neither."""
    if isinstance(value, bool):
        return kind is bool
    wider = {int: numbers.Integral, float: numbers.Real}
    return isinstance(value, wider.get(kind, kind))
