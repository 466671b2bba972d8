"""Reads and checks the values of config keys, by kind of key."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trainer_loop.config.named_sets import QUERY, is_query, read_fold
from trainer_loop.config.schema import Key
from trainer_loop.config.secrets import mask_values
from trainer_loop.config.yaml_core import NULL, plain, texts_in
from trainer_loop.errors import cut_short, suggest

_LARGEST = 2**62  # torch and NumPy use 64-bit integers
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[-+]?[0-9](?:_?[0-9]){0,99}")
_STEPS = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_MOST_STEPS = 100  # maximum length of a range of steps
_FOLD = re.compile(r"[1-9][0-9]{0,5}/[1-9][0-9]{0,5}")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Kind:
    """How the keys of one kind are read and checked."""

    words: str  # describes allowed values, for messages and the reference
    read: Callable[[Node], object]  # converts a node; returns values of another kind unchanged
    fault: Callable[[object], str | None]  # None: valid; else what is wrong, or "" if `words` says enough


def read(node: Node, key: Key) -> object:
    """Convert a YAML node into the value of its key. A text with `${...}` stays a text until it is resolved."""
    if isinstance(node, ScalarNode) and "${" in node.value:
        return node.value
    if node.tag == NULL:
        return type(key.default)() if isinstance(key.default, (dict, list)) else None
    return KINDS[key.kind].read(node)


def check_unresolved(value: object, key: Key) -> str | None:
    """Do the same as `check_value` for an unresolved value. A value with `${...}` is only checked once resolved."""
    texts = list(texts_in(value))
    if any(text.endswith("???") and not text[:-3].strip("\\") for text in texts):
        return f"{key.name} is {shown(value)}; ??? marks a value that is still missing: give it one"
    return None if any("${" in text for text in texts) else check_value(value, key)


def check_value(value: object, key: Key) -> str | None:
    """Return the problem of a value, in a sentence that names the key, the value and the allowed values; or None."""
    if value is None and key.nullable:
        return None
    fault = KINDS[key.kind].fault(value)
    if fault is None and any("\0" in text for text in texts_in(value)):
        fault = "there is a NUL character in it; remove it"
    detail = _outside_limits(value, key) if fault is None else fault
    if detail is None:
        return None
    if value is None:
        detail = fault or "leave the key out for its default"
    elif isinstance(value, str) and value.lower() == "none" and key.nullable:
        detail = "write null for no value"
    return f"{key.name} is {shown(value)}; allowed: {expects(key)}" + (f"; {detail}" if detail else "")


def _outside_limits(value: object, key: Key) -> str | None:
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"whole numbers reach to {_LARGEST:,}"
    if key.allowed and value not in key.allowed:
        return suggest(str(value), key.allowed).removeprefix("; ")
    if key.nullable and value == "None":
        return ""  # Python's spelling of null would be taken for the name of a column or a model
    if not isinstance(value, (int, float)):
        return None
    is_low = (key.at_least is not None and value < key.at_least) or (key.above is not None and value <= key.above)
    return "" if is_low or (key.below is not None and value >= key.below) else None


def expects(key: Key) -> str:
    """Describe the allowed values of a key."""
    words = _listed(key.allowed) if key.allowed else KINDS[key.kind].words
    limits = (("of at least", key.at_least), ("above", key.above), ("below", key.below))
    ranges = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
    unit = f" ({key.unit})" if key.unit else ""
    return f"{words}{' ' if ranges else ''}{ranges}{unit}{' or null' if key.nullable else ''}"


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shown(value: object) -> str:
    """Format a value for a message: as in YAML, texts in quotes, long values shortened, secrets masked."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut_short(repr(mask_values(value)), at_most=80)


def _is_integer(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _text(node: Node) -> object:
    """Return the literal text of a scalar, or None for null."""
    return node.value if isinstance(node, ScalarNode) and node.tag != NULL else plain(node)


def _text_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return ""
    return None if value else "a text is not empty here"


def _boolean(node: Node) -> object:
    value = _text(node)
    return _BOOLEANS.get(value.lower(), value) if isinstance(value, str) else value


def _integer(node: Node) -> object:
    value = _number(node)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(node: Node) -> object:
    """Convert 012 -> 12, 1_000 -> 1000, 1e3 -> 1000.0; return other values unchanged."""
    value = _text(node)
    if not isinstance(value, str):
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if _DECIMAL.fullmatch(value) else value


def _is_number(value: object, *, at_least: float = -math.inf) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= at_least  # type: ignore[arg-type, operator]


def _integer_fault(*words: str, at_least: int) -> Callable[[object], str | None]:
    """Return a check for whole numbers of at least `at_least`, or one of the words."""
    return lambda value: None if value in words or _is_integer(value, at_least=at_least) else ""


def _mapping(node: Node) -> object:
    return {key.value: plain(value) for key, value in node.value} if isinstance(node, MappingNode) else plain(node)


def _list_of(read_item: Callable[[Node], object]) -> Callable[[Node], object]:
    """Return a reader of lists whose items `read_item` reads. A single value is a list of one item."""
    return lambda node: [read_item(item) for item in (node.value if isinstance(node, SequenceNode) else [node])]


def _fault_of_each(item_fault: Callable[[object], str | None]) -> Callable[[object], str | None]:
    """Return a check that finds the first fault of the items of a list."""

    def find(value: object) -> str | None:
        if not isinstance(value, list):
            return ""
        return next((fault for fault in map(item_fault, value) if fault is not None), None)

    return find


_texts = _list_of(_text)


def _texts_fault(value: object) -> str | None:
    return None if isinstance(value, list) and all(isinstance(item, str) and item for item in value) else ""


def _splits(node: Node) -> object:
    if isinstance(node, MappingNode):
        return {key.value: _text(value) for key, value in node.value}
    return _texts(node) if isinstance(node, SequenceNode) else _text(node)


def _named_splits(node: Node) -> object:
    if not isinstance(node, MappingNode) or is_query(_splits(node)):
        return _splits(node)
    return {key.value: _splits(value) for key, value in node.value}


def _named_splits_fault(value: object) -> str | None:
    if not isinstance(value, dict) or is_query(value):
        return _splits_fault(value)
    if not value:
        return ""
    for name, split in value.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", str(name)):
            return f"{shown(name)} is no name: up to 100 letters, digits, _ and - make one"
        if (fault := _splits_fault(split)) is not None:
            return f"{name} is {shown(split)}, " + (fault or "not a text or a list of texts")
    return None


def _splits_fault(value: object) -> str | None:
    if isinstance(value, dict):
        return _query_fault(value)
    if isinstance(value, str) and "://" in value:
        return "an address is no file; a database is read by a query, {sql: ..., connection: ...}"
    return None if isinstance(value, str) and value else _texts_fault(value or None)


def _query_fault(value: dict[str, object]) -> str | None:
    unknown = [part for part in value if part not in QUERY]
    if unknown:
        return f"{unknown[0]} is not {_listed(QUERY)}"
    missing = [part for part in QUERY if _text_fault(value.get(part)) is not None]
    return f"{missing[0]} is missing" if missing else None


def _label_names(node: Node) -> object:
    return _texts(node) if isinstance(node, SequenceNode) else _mapping(node)


def _label_names_fault(value: object) -> str | None:
    if isinstance(value, dict) and value:
        if not all(isinstance(label, (int, str)) for label in value.values()):
            return ""
        labels = list(value.values())
    elif isinstance(value, list) and value and _texts_fault(value) is None:
        labels = value
    else:
        return ""
    twice = [label for position, label in enumerate(labels) if label in labels[:position]]
    return f"{shown(twice[0])} is there twice" if twice else None


def _columns(node: Node) -> object:
    return {key.value: _splits(value) for key, value in node.value} if isinstance(node, MappingNode) else plain(node)


def _columns_fault(value: object) -> str | None:
    if not isinstance(value, dict):
        return ""
    for name, column in value.items():
        if column is not None and _splits_fault(column) is not None:
            return f"{name} is {shown(column)}, not the name of a column"
        if isinstance(column, list) and len(set(column)) < len(column):
            return f"{name} has a column twice"
    return None


def spell_delimiter(value: object) -> object:
    """Replace `tab` and `\\t`, which are easier to type, by a tab."""
    return "\t" if value in ("tab", "\\t") else value


def explain_delimiter(value: object) -> str | None:
    """Return what is wrong with a delimiter of fields; "" if it is not one character; None if it is valid."""
    if not isinstance(value, str) or len(value) != 1:
        return ""
    return f"{shown(value)} has a meaning of its own" if value in '"\r\n\0' else None


def explain_encoding(value: object) -> str | None:
    """Return what is wrong with the name of an encoding; None if Python can read and write text with it."""
    if not isinstance(value, str) or not value:
        return ""
    try:
        is_known = "a\n".encode(value).decode(value) == "a\n"
    except (LookupError, ValueError):  # UnicodeError is a ValueError
        is_known = False
    return None if is_known else "Python knows no encoding of this name; some are utf-8, utf-16, windows-1252, gb18030"


def _fold_fault(value: object) -> str | None:
    if not isinstance(value, str) or not _FOLD.fullmatch(value):
        return ""
    part, parts = read_fold(value)
    return None if part <= parts and parts > 1 else f"there is no part {part} of {parts} parts"


def _interval_fault(value: object) -> str | None:
    if value in ("epoch", "never") or _is_integer(value, at_least=1) or (isinstance(value, float) and 0 < value < 1):
        return None
    is_off = value is False or str(value).lower() in ("no", "off", "false", "none", "0")
    return "write never" if is_off else ""


def parse_steps(value: str) -> tuple[int, int]:
    """Return the first and last step of a valid range: `20-25` -> (20, 25)."""
    first, _, last = value.partition("-")
    return int(first), int(last)


def _steps_fault(value: object) -> str | None:
    if not isinstance(value, str) or not _STEPS.fullmatch(value):
        return ""
    first, last = parse_steps(value)
    if first < 1:
        return "the first step is 1"
    if last < first:
        return "it ends before it begins"
    return "nothing opens a trace that long" if last - first >= _MOST_STEPS else None


def _metric(node: Node) -> object:
    if not isinstance(node, MappingNode):
        return _text(node)
    return {key.value: plain(value) if key.value == "args" else _text(value) for key, value in node.value}


def _metric_fault(entry: object) -> str | None:
    if not isinstance(entry, dict):
        return None if isinstance(entry, str) and entry else f"{shown(entry)} is not the name of a metric"
    unknown = [part for part in entry if part not in ("name", "args", "key")]
    if unknown:
        return f"{unknown[0]} is not name, args or key"
    if _text_fault(entry.get("name")) is not None:
        return f"{shown(entry)} has no name"
    if not isinstance(entry.get("args", {}), dict):
        return f"the args of {entry['name']} are not a mapping"
    return None if isinstance(entry.get("key", ""), str) else f"the key of {entry['name']} is not a text"


def _group(node: Node) -> object:
    if not isinstance(node, MappingNode):
        return plain(node)
    return {key.value: _text(value) if key.value == "match" else _number(value) for key, value in node.value}


def _group_fault(entry: object) -> str | None:
    if not isinstance(entry, dict):
        return f"{shown(entry)} is not a mapping; write {{match: {entry}, lr: 1e-3}}"
    settings = ("lr", "weight_decay", "unfreeze_at")
    unknown = [part for part in entry if part not in ("match", *settings)]
    if unknown:
        return f"{unknown[0]} is not match, {_listed(settings)}"
    if _text_fault(entry.get("match")) is not None:
        return f"{shown(entry)} has no match, the pattern of its parameters' names"
    if len(entry) == 1:
        return f"{entry['match']} has no {_listed(settings)}"
    wrong = [name for name in settings if name in entry and not _is_number(entry[name], at_least=0)]
    return f"{wrong[0]} of {entry['match']} is {shown(entry[wrong[0]])}, not a number of at least 0" if wrong else None


def _source(node: Node) -> object:
    if not isinstance(node, MappingNode):
        return plain(node)
    read = {"weight": _number, "loss_weight": _number, "columns": _columns, "train": _splits, "deduplicate": _boolean}
    parts = {key.value: read.get(key.value, _text)(value) for key, value in node.value}
    return {part: value for part, value in parts.items() if value is not None or part not in _REMOVED_BY_NULL}


def _text_or_null_fault(value: object) -> str | None:
    return None if value is None else _text_fault(value)


_REMOVED_BY_NULL = ("dataset", "config", "columns", "loss_weight")
_OPTIONAL_PARTS: dict[str, tuple[Callable[[object], str | None], str]] = {
    "loss_weight": (lambda value: None if _is_number(value, at_least=0) else "", "a number of at least 0"),
    "dataset": (_text_fault, "a text"),
    "config": (_text_fault, "a text"),
    "filter": (_text_or_null_fault, "a text or null"),  # null: data.filter does not apply to this source
    "map": (_text_or_null_fault, "a text or null"),
    "deduplicate": (lambda value: None if isinstance(value, bool) else "", "true or false"),
}
_PARTS_OF_SOURCE = ("name", "train", "weight", "columns", *_OPTIONAL_PARTS)


def _source_fault(entry: object) -> str | None:
    if not isinstance(entry, dict):
        return f"{shown(entry)} is not a mapping; write {{name: ..., train: {entry}, weight: 0.5}}"
    unknown = [part for part in entry if part not in _PARTS_OF_SOURCE]
    if unknown:
        return f"{unknown[0]} is not {_listed(_PARTS_OF_SOURCE)}"
    if _text_fault(entry.get("name")) is not None:
        return f"{shown(entry)} has no name"
    if "/" in entry["name"] or entry["name"] in ("train", "validation", "test"):
        return (
            f"{entry['name']} names a split, or has a slash, and its loss is logged as NAME/loss; choose another name"
        )
    if (wrong := _splits_fault(entry.get("train"))) is not None:
        return f"train of {entry['name']}: {wrong}" if wrong else f"{entry['name']} has no train, {_ITS_ROWS}"
    if not _is_number(entry.get("weight"), at_least=0) or not entry["weight"]:
        return f"weight of {entry['name']} is {shown(entry.get('weight'))}, not a number above 0"
    if (wrong := _columns_fault(entry.get("columns", {}))) is not None:
        return f"columns of {entry['name']}: {wrong or 'not a mapping'}"
    for part, (find_fault, allowed) in _OPTIONAL_PARTS.items():
        if part in entry and find_fault(entry[part]) is not None:
            return f"{part} of {entry['name']} is {shown(entry[part])}, not {allowed}"
    return None


def _mixture_fault(value: object) -> str | None:
    if (fault := _fault_of_each(_source_fault)(value)) is not None or not isinstance(value, list) or not value:
        return fault
    names = [entry["name"] for entry in value]
    twice = [name for name in names if names.count(name) > 1]
    if len(names) == 1:
        return f"{names[0]} alone is no mixture; set data.train"
    return f"{twice[0]} is the name of two sources" if twice else None


_ITS_ROWS = "its files or the split of its dataset"
_SPLITS = "a text, a list of texts, or {sql, connection}"
KINDS: dict[str, Kind] = {
    "text": Kind("a text", _text, _text_fault),
    "true_or_false": Kind("true or false", _boolean, lambda value: None if isinstance(value, bool) else ""),
    "integer": Kind("a whole number", _integer, _integer_fault(at_least=-(10**99))),
    "number": Kind("a number", _number, lambda value: None if _is_number(value) else ""),
    "mapping": Kind("a mapping", _mapping, lambda value: None if isinstance(value, dict) else ""),
    "texts": Kind("a list of texts", _texts, _texts_fault),
    "splits": Kind(_SPLITS, _splits, _splits_fault),
    "named_splits": Kind(
        "a text, a list of texts, {sql, connection}, or a mapping from the name of a set to one of these",
        _named_splits,
        _named_splits_fault,
    ),
    "label_names": Kind("a list of names or a mapping from name to label", _label_names, _label_names_fault),
    "columns": Kind("a mapping from columns of the task to columns of the data", _columns, _columns_fault),
    "delimiter": Kind("one character, or tab", lambda node: spell_delimiter(_text(node)), explain_delimiter),
    "encoding": Kind("the name of an encoding", _text, explain_encoding),
    "token_limit": Kind("auto or a whole number of at least 1", _integer, _integer_fault("auto", at_least=1)),
    "auto_or_count": Kind("auto or a whole number of at least 0", _integer, _integer_fault("auto", at_least=0)),
    "auto_or_positive": Kind("auto or a whole number of at least 1", _integer, _integer_fault("auto", at_least=1)),
    "fold": Kind("a part of several, such as 2/5", _text, _fold_fault),
    "interval": Kind("epoch, never, a number of steps, or below 1 a share of an epoch", _integer, _interval_fault),
    "steps": Kind(f"a range of at most {_MOST_STEPS} steps, such as 20-25", _text, _steps_fault),
    "groups": Kind("a list of {match, lr, weight_decay, unfreeze_at}", _list_of(_group), _fault_of_each(_group_fault)),
    "mixture": Kind(f"a list of {{{', '.join(_PARTS_OF_SOURCE)}}}", _list_of(_source), _mixture_fault),
    "metrics": Kind("a list of names or of {name, args, key}", _list_of(_metric), _fault_of_each(_metric_fault)),
}
