"""Reads and writes YAML by the core schema of YAML 1.2, in which only true and false are booleans.

PyYAML follows YAML 1.1: it reads `no` as false, `012` as 10 and `1e-3` as a text.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

NULL, BOOL, INT, FLOAT, STR, SEQ, MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)

# The first pattern that matches the whole scalar determines its type.
_PATTERNS = {
    NULL: re.compile(r"~|null|Null|NULL|"),
    BOOL: re.compile(r"true|True|TRUE|false|False|FALSE"),
    INT: re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99}|[1-9][0-9]{0,2}(?:_[0-9]{3})+)"),  # 012 stays a text
    FLOAT: re.compile(
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)"
    ),
}

# Fragments of PyYAML's messages, which describe its scanner -> what to change in the file.
_REMEDIES = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "put a text that holds ': ' in quotes, or check the indentation",
    "expected <block end>": "check the indentation of this line",
    "alias": "put a text that begins with * in quotes",
    "expected ',' or": "close the bracket",
    "unexpected end of stream": "close the quote",
    "expected a single document": "a config is one document: remove the line ---",
    "could not find expected ':'": "write key: value, with a space after the colon",
    "cannot start any token": "put the text in quotes",
}

_TOO_DEEP = "brackets, indents or aliases are nested too deeply; a config needs a few levels"
_MOST_REPEATED = 10_000  # maximum number of values that aliases repeat

# The scanner reports these at the end of the faulty text; the user must fix its start.
_NOT_CLOSED = ("expected ',' or", "unexpected end of stream", "could not find expected ':'")


def core_tag(text: str) -> str:
    """Return the tag of an unquoted scalar."""
    return next((tag for tag, pattern in _PATTERNS.items() if pattern.fullmatch(text)), STR)


class CoreLoader(yaml.SafeLoader):
    """Composes nodes whose scalars have the tags of the core schema."""


class CoreDumper(yaml.SafeDumper):
    """Quotes every text that the core schema or YAML 1.1 would not read as a text."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        """Use double quotes for characters that other styles lose, such as the line break U+0085."""
        return self.represent_scalar(STR, data, style=None if data.isprintable() else '"')


CoreDumper.add_representer(str, CoreDumper.represent_str)
CoreLoader.yaml_implicit_resolvers = {}  # removes the resolvers of YAML 1.1
for _tag, _pattern in _PATTERNS.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    CoreLoader.add_implicit_resolver(_tag, _whole, None)
    CoreDumper.add_implicit_resolver(_tag, _whole, None)


class Fault(NamedTuple):
    """A fault of the YAML text itself. Lines and columns count from 1; column 0 is unknown."""

    line: int
    column: int
    problem: str


def compose(text: str) -> tuple[Node | None, list[Fault]]:
    """Parse a YAML text.

    Returns:
        The tree of nodes without faulty values, and the faults. After a syntax error the tree is None.
    """
    try:
        root = CoreLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        return None, [_syntax_fault(error)]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return None, [Fault(line, 0, f"character {chr(error.character)!r} is no text; remove it")]
    except RecursionError:
        return None, [Fault(1, 0, _TOO_DEEP)]
    if root is None:
        return None, []
    document = SequenceNode(SEQ, [root])
    try:
        if _count_repeated(document, seen={}) > _MOST_REPEATED:
            problem = f"aliases stand for more than {_MOST_REPEATED:,} values; write out what is meant"
            return None, [Fault(1, 0, problem)]
        faults = _remove_faults(document, above=())
    except RecursionError:
        return None, [Fault(1, 0, _TOO_DEEP)]
    return (document.value or [None])[0], faults


def _count_repeated(node: Node, *, seen: dict[int, int]) -> int:
    """Count the values that aliases repeat. seen: number of values in each node, by its id."""
    repeated = 0
    seen[id(node)] = 1  # set before the count is complete, in case an alias refers to this node
    entries = [] if isinstance(node, ScalarNode) else node.value
    for child in (child for entry in entries for child in (entry if isinstance(entry, tuple) else (entry,))):
        if id(child) in seen:
            repeated += seen[id(child)]
        else:
            repeated += _count_repeated(child, seen=seen)
        seen[id(node)] += seen[id(child)]
    return repeated


def _syntax_fault(error: yaml.MarkedYAMLError) -> Fault:
    message = ", ".join(part for part in (error.context, error.problem) if part)
    starts_earlier = error.context_mark and any(fragment in message for fragment in _NOT_CLOSED)
    mark = error.context_mark if starts_earlier else error.problem_mark
    remedy = next((remedy for fragment, remedy in _REMEDIES.items() if fragment in message), "check the syntax here")
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 0)
    return Fault(line, column, f"this is not YAML: {message}; {remedy}")


def _remove_faults(node: Node, *, above: tuple[Node, ...]) -> list[Fault]:
    """Remove the faulty entries below a mapping or list, and return their faults."""
    faults: list[Fault] = []
    kept: list[Any] = []
    lines: dict[str, int] = {}  # line of each key so far
    for entry in node.value:
        key, value = entry if isinstance(node, MappingNode) else (None, entry)
        problem = (_key_problem(key, value, lines) if key else None) or _value_problem(value, above=(*above, node))
        line = (key or value).start_mark.line + 1
        if problem:
            faults.append(Fault(line, 0, problem))
            continue
        kept.append(entry)
        if key:
            lines[key.value] = line
        if not isinstance(value, ScalarNode):
            faults += _remove_faults(value, above=(*above, node))
    node.value[:] = kept
    return faults


def _key_problem(key: Node, value: Node, lines: dict[str, int]) -> str | None:
    if not isinstance(key, ScalarNode) or key.tag == NULL:
        return "a key must be a text on one line, such as seed: 42"
    if key.value in lines:
        here = key.start_mark.line + 1
        return f"{key.value} is given twice, on lines {lines[key.value]} and {here}; remove one of them"
    if ":" in key.value and key.style is None and value.tag == NULL and value.value == "":
        name, _, rest = key.value.partition(":")
        return f"{key.value} has no value; a space follows the colon: {name}: {rest}"
    return None


def _value_problem(value: Node, *, above: tuple[Node, ...]) -> str | None:
    if value in above:
        return "an alias stands inside the mapping or list that it refers to; write the values out"
    pattern = _PATTERNS.get(value.tag) if isinstance(value, ScalarNode) else None
    if value.tag not in (NULL, BOOL, INT, FLOAT, STR, SEQ, MAP) or (pattern and not pattern.fullmatch(value.value)):
        tag = value.tag.replace("tag:yaml.org,2002:", "!!")
        return f"the tag {tag} is not allowed here; write the value without a tag"
    return None


def plain(node: Node) -> object:
    """Convert a node into dicts, lists, texts, numbers, booleans and None."""
    if isinstance(node, MappingNode):
        return {plain(key): plain(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [plain(value) for value in node.value]
    text: str = node.value
    if node.tag == NULL:
        return None
    if node.tag == BOOL:
        return text.lower() == "true"
    if node.tag == INT:
        return int(text.replace("_", ""))
    if node.tag == FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def dump(tree: dict[str, object]) -> str:
    """Write plain values as YAML in block style. `compose` and `plain` read equal values."""
    return yaml.dump(tree, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value, including the keys of mappings."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, str):
        yield value
