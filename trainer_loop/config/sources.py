"""Reads the layers of a config, YAML files and the command line, into entries of keys."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trainer_loop.config.find import find_config
from trainer_loop.config.schema import KEYS, SECTIONS, keys_of
from trainer_loop.config.secrets import mask_arguments
from trainer_loop.config.values import KINDS, check_unresolved, read, shown
from trainer_loop.config.yaml_core import MAP, NULL, STR, compose, core_tag, plain
from trainer_loop.errors import UserError, displayed, under
from trainer_loop.migrate.translations import describe_unknown

COMMAND_LINE = "command line"
_EXTENDS = "extends"  # allowed in files; not a key of the config


@dataclass(frozen=True)
class Entry:
    """One key set by one layer."""

    name: str
    value: object
    place: str  # `imdb.yaml:12` or `command line`


@dataclass
class Layer:
    """The entries of a layer in order, and its problems. A key with a problem has no entry."""

    entries: list[Entry] = field(default_factory=list)
    extends: list[Entry] = field(default_factory=list)  # one for each extended file
    problems: list[str] = field(default_factory=list)
    is_readable: bool = True  # false: its keys are unknown


def file_layers(path: Path) -> list[Layer]:
    """Read a YAML file and the files that it extends. Extended files come first; later layers win.

    A file that is extended several times gives one layer, at its last position.
    """
    layers: dict[Path, Layer] = {}
    _add_file(layers, path, above=())
    return [*reversed(layers.values())]


def _add_file(layers: dict[Path, Layer], path: Path, *, above: tuple[Path, ...]) -> None:
    """Add the layers of a file and of the files it extends, in reverse order. above: the files that extend this one."""
    layer = layers[path.resolve()] = file_layer(path)
    bases = []
    for entry in layer.extends:
        try:
            bases.append(_find_base(entry, path, above=(*above, path)))
        except UserError as error:
            layer.problems += error.problems
            layer.is_readable = False
    for base in reversed(bases):
        if base.resolve() not in layers:
            _add_file(layers, base, above=(*above, path))


def _find_base(entry: Entry, path: Path, *, above: tuple[Path, ...]) -> Path:
    """Find the file that an `extends` entry names. Raises UserError if it does not exist or extends itself."""
    with under(f"{entry.place}: "):
        base = find_config(str(entry.value), extended_by=path)
    same = next((number for number, file in enumerate(above) if file.resolve() == base.resolve()), None)
    if same is not None:
        circle = " -> ".join(displayed(file) for file in (*above[same:], base))
        raise UserError(
            f"{entry.place}: extends: {entry.value} makes a circle: {circle}; a file cannot extend itself, so remove "
            "this line or name another file"
        )
    return base


def file_layer(path: Path) -> Layer:
    """Read a YAML file. Problems start with `file:line:`."""
    name = displayed(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return _unreadable(f"{name}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return _unreadable(
            f"{name}:{line}: this is not a text in UTF-8: byte 0x{error.object[error.start]:02x}; save it as UTF-8"
        )
    node, faults = compose(text)
    problems = [f"{name}:{fault.line}:{f'{fault.column}:' if fault.column else ''} {fault.problem}" for fault in faults]
    if node is None and not problems:
        problems.append(f"{name}: the file is empty; it needs at least model.name or model.type")
    elif node is not None and not isinstance(node, MappingNode):
        kind = "a list" if not isinstance(node, ScalarNode) else f"the text {shown(node.value)}"
        problems.append(f"{name}:{node.start_mark.line + 1}: this is {kind}; a config is a mapping, such as seed: 42")
    if not isinstance(node, MappingNode):
        return _unreadable(*problems)

    def place_of(node: Node) -> str:
        return f"{name}:{node.start_mark.line + 1}"

    layer = Layer(problems=problems)
    _take_out_extends(layer, node, place_of=place_of)
    _add_entries(layer, node, prefix="", place_of=place_of)
    return layer


def _take_out_extends(layer: Layer, node: MappingNode, *, place_of: Callable[[Node], str]) -> None:
    """Move the entries of `extends` from the node to the layer."""
    for value in [value for key, value in node.value if key.value == _EXTENDS and value.tag != NULL]:
        for item in value.value if isinstance(value, SequenceNode) else [value]:
            if isinstance(item, ScalarNode) and item.tag != NULL and item.value:
                layer.extends.append(Entry(_EXTENDS, item.value, place_of(item)))
            else:
                problem = f"extends is {shown(plain(value))}; allowed: the name of a file, or a list of such names"
                layer.problems.append(f"{place_of(item)}: {problem}")
                layer.is_readable = False
    node.value[:] = [(key, value) for key, value in node.value if key.value != _EXTENDS]


def command_line_layer(arguments: Sequence[str]) -> Layer:
    """Read `key=value` arguments in order. Problems start with `command line:`.

    The value of a text key is taken literally. For other keys `[a, b]`, `{a: 1}` and quotes are read as in a file. An
    empty value is null, as in a file.
    """
    layer = Layer()
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            layer.problems.append(f"{COMMAND_LINE}: {argument} has no value; write {argument}=value")
            continue
        if name == _EXTENDS:
            problem = f"{argument}: extends is a line of a file; write it into the file that config= names"
            layer.problems.append(f"{COMMAND_LINE}: {problem}")
            continue
        value, problems = _argument_node(name, text)
        layer.problems += [f"{COMMAND_LINE}: {mask_arguments([argument])[0]}: {problem}" for problem in problems]
        if value is not None and not problems:
            _add_entries(layer, _nested(name, value), prefix="", place_of=lambda key: COMMAND_LINE)
    return layer


def read_argument(name: str, text: str) -> object:
    """Parse a text of the command line as the value of a config key. Raises UserError if it is invalid.

    >>> read_argument("data.train", "[a.csv, b.csv]")
    ['a.csv', 'b.csv']
    """
    node, problems = _argument_node(name, text)
    if node is None or problems:
        raise UserError(problems or "it is empty")
    value, kind = read(node, KEYS[name]), KINDS[KEYS[name].kind]
    if (fault := kind.fault(value)) is not None:
        raise UserError(fault or f"it must be {kind.words}")
    return value


def _argument_node(name: str, text: str) -> tuple[Node | None, list[str]]:
    kind = KEYS[name].kind if name in KEYS else ""
    brackets = text[0] + text[-1] if len(text) > 1 else ""
    as_yaml = {"text": (), "texts": ("[]",), "splits": ("[]", "{}")}.get(kind, ("[]", "{}", '""', "''"))
    if brackets not in as_yaml:
        return ScalarNode(core_tag(text), text), []
    node, faults = compose(text)
    return node, [fault.problem for fault in faults]


def _nested(name: str, value: Node) -> MappingNode:
    """Return the node `{a: {b: value}}` for the name `a.b`, as in a file."""
    first, dot, rest = name.partition(".")
    return MappingNode(MAP, [(ScalarNode(STR, first), _nested(rest, value) if dot else value)])


def _add_entries(layer: Layer, node: MappingNode, *, prefix: str, place_of: Callable[[Node], str]) -> None:
    """Walk the sections below `prefix`, and add the entry or the problem of each key to the layer."""
    for key_node, value_node in node.value:
        name, place = prefix + key_node.value, place_of(key_node)
        if name in KEYS:
            value = read(value_node, KEYS[name])
            problem = check_unresolved(value, KEYS[name])
            if problem:
                layer.problems.append(f"{place}: {problem}")
            else:
                layer.entries.append(Entry(name, value, place))
        elif name in SECTIONS and isinstance(value_node, MappingNode):
            _add_entries(layer, value_node, prefix=name + ".", place_of=place_of)
        elif name in SECTIONS and value_node.tag != NULL:
            layer.problems.append(f"{place}: {_section_expected(name, value_node)}")
        elif name not in SECTIONS:
            layer.problems += [
                f"{place_of(leaf)}: {describe_unknown(path)}" for path, leaf in _leaves(name, key_node, value_node)
            ]


def _leaves(name: str, key: Node, value: Node) -> Iterator[tuple[str, Node]]:
    """Yield the full names of all keys below an unknown key, because a nested name may get a better hint."""
    if isinstance(value, MappingNode) and value.value:
        for key_below, value_below in value.value:
            yield from _leaves(f"{name}.{key_below.value}", key_below, value_below)
    else:
        yield name, key


def _section_expected(name: str, node: Node) -> str:
    value = plain(node)
    keys = [key.name for key in keys_of(name)]
    if f"{name}.name" in keys and isinstance(value, str):
        remedy = f"write {name}.name={value} (in a file {name}: {{name: {value}}})"
    else:
        remedy = f"its keys are {', '.join(keys)}"
    return f"{name} is {shown(value)}, but it is a section; {remedy}"


def _unreadable(*problems: str) -> Layer:
    return Layer(problems=list(problems), is_readable=False)
