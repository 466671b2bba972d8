"""A name or a dotted path -> the object it means, and its arguments judged before it is called.

A dotted path runs the modules on it. So do model.trust_remote_code and metric scripts; nothing else in a config does.
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

# Types of values in a config that annotations name, and what users call them.
_PLAIN_TYPES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}


def refuse_less(values: Mapping[str, int], least: Mapping[str, int], *, place: str) -> None:
    """Raise UserError with every value, by its name, that is below the least one allowed."""
    problems = [
        f"{place}.{name}: {value}; it must be {least[name]} or more"
        for name, value in values.items()
        if value < least[name]
    ]
    refuse(problems)


def refuse_others(values: Mapping[str, object], allowed: Mapping[str, Sequence[object]], *, place: str) -> None:
    """Raise UserError with every value, by its name, that is none of those allowed."""
    problems = [
        f"{place}.{name}: {value}; it must be {' or '.join(map(str, allowed[name]))}"
        for name, value in values.items()
        if value not in allowed[name]
    ]
    refuse(problems)


def choose(name: str, table: Mapping[str, _T], *, place: str) -> _T:
    """The entry of a table, or the object at a dotted path.

    `place` is the config key the name is from. Raises UserError with the names of the table, or as `locate` does.
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
    """Import what a dotted path such as `my_lab.losses.focal` means; the current directory is looked in too.

    `place` is the config key the path is from. Raises UserError with one line when the path has another form, a part
    of it does not exist, or a file on it fails when it is imported (with the line of the user's own file).
    """
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{place} is {dotted!r}; a dotted path names a module and what is in it: my_lab.losses.focal")
    if not {"", str(Path.cwd())} & set(sys.path):
        insert_after_installed(str(Path.cwd()))
    importlib.invalidate_caches()
    found: object = _import(parts[0], dotted=dotted, place=place)
    for depth, part in enumerate(parts[1:], start=1):
        found = _member(found, part, path=".".join(parts[:depth]), dotted=dotted, place=place)
    if isinstance(found, ModuleType):
        members = {name: getattr(vars(found).get(name), "__module__", "") for name in _public_names(found)}
        names = ", ".join(name for name, origin in members.items() if origin == found.__name__) or "nothing"
        raise UserError(f"{place}: {dotted} is a module; name what to take from it: {names}")
    return found


def _member(owner: object, name: str, *, path: str, dotted: str, place: str) -> object:
    """An attribute of a module or class, or the submodule of that name."""
    try:
        return getattr(owner, name)
    except AttributeError:
        pass  # perhaps a submodule that nothing has imported yet
    except Exception as error:  # a module's own __getattr__ may import more
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
    """`Mine.loss (my_lab/tasks.py:12)`: a function, and the line where it begins."""
    name = getattr(function, "__qualname__", repr(function))
    code = getattr(inspect.unwrap(function), "__code__", None)
    return name if code is None else f"{name} ({displayed(code.co_filename)}:{code.co_firstlineno})"


def fingerprint_own(found: object) -> str | None:
    """The file of a class or function that nobody installed, and a checksum of its source; None for all others."""
    try:
        file, source = inspect.getsourcefile(found), inspect.getsource(found)  # type: ignore[arg-type] # told by it
    except (TypeError, OSError):
        return None
    if file is None or not is_own(file):
        return None
    return f"{Path(file).name} {zlib.crc32(source.encode()):08x}"


def describe_own_line(error: BaseException) -> str | None:
    """The innermost line of code that nobody installed and that is none of ours, and the error; None without one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_file() and is_own(frame.filename):
            told = str(error).strip().partition("\n")[0]
            return f"{displayed(frame.filename)}:{frame.lineno}: {type(error).__name__}: {told}"
    return None


def _import(module: str, *, dotted: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module and "." not in module:
            hint = suggest(module, _module_names([str(Path.cwd())]))
            told = f"there is no module {module}, installed or in the current directory{hint}"
            raise UserError(f"{place}: {dotted}: {told}") from error
        raise UserError(_import_failure(error, dotted=dotted, place=place)) from error
    except (Exception, SystemExit) as error:  # whatever a user's file may do when it is imported
        raise UserError(_import_failure(error, dotted=dotted, place=place)) from error


def _import_failure(error: BaseException, *, dotted: str, place: str) -> str:
    """What went wrong inside a file on the path: that file, its line, the error."""
    if isinstance(error, SyntaxError) and error.filename:
        where, said = f"{displayed(error.filename)}:{error.lineno}: ", error.msg
    else:
        stack = traceback.extract_tb(error.__traceback__)
        machinery = (__file__, importlib.__file__)
        frames = [at for at in stack if not at.filename.startswith("<frozen ") and at.filename not in machinery]
        own = [frame for frame in frames if not is_installed(frame.filename)] or frames
        where, said = (f"{displayed(own[-1].filename)}:{own[-1].lineno}: " if own else ""), str(error)
    first_line = said.strip().partition("\n")[0]
    return f"{place}: {dotted} cannot be imported: {where}{type(error).__name__}: {first_line}"


def _module_names(directories: Iterable[str]) -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(list(directories))]


def _public_names(owner: object) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def full_name(function: Callable[..., Any]) -> str:
    """The dotted path of a function or class."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(function)


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, object], *, place: str, given: Collection[str]
) -> list[str]:
    """Problems of calling `function(**arguments)`, one line each; `place` is the config key of the arguments.

    `given` are the names that the caller passes besides; the function need not have them. A function whose
    signature Python cannot tell, as of some built-ins, has no problems.
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
    """As `check_arguments`, of a function called `name` with these parameters."""
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
    """Why a value of a config is none of an annotation's plain types; None: it is, or the annotation has others.

    A value of the type of the default is right, whatever the annotation says.
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
    """Whether a value has a plain type; a whole number is a number too, and neither is true or false."""
    if isinstance(value, bool):
        return kind is bool
    wider = {int: numbers.Integral, float: numbers.Real}
    return isinstance(value, wider.get(kind, kind))
