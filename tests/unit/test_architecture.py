"""docs/architecture.md names files and code that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trainer_loop"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Quoted words with a capital letter or an underscore that are no names of the package.
NO_NAMES = {"num_processes / num_targets", "make format", "plan_x", "train.timeout_minutes"}


def defined_names() -> set[str]:
    """Functions and classes of the package, and methods as `Class.method`."""
    names = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_every_file_it_names_exists():
    files = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", PAGE)) - {"trainer_loop/"}
    assert len(files) > 20
    missing = [file for file in files if not (PACKAGE / file).exists() and not (ROOT / file).exists()]
    assert not missing


def test_every_name_it_mentions_is_defined():
    quoted = set(re.findall(r"`([A-Za-z_][\w.]*)`", PAGE)) - NO_NAMES
    names = {name for name in quoted if re.search(r"[A-Z]|\w_\w", name) and not name.endswith(".py")}
    assert len(names) > 25
    assert not sorted(names - defined_names())


def test_a_name_stands_in_the_file_that_is_named_before_it():
    pairs = re.findall(r"`([\w/]+\.py)`, `([A-Za-z_][\w.]*)`", PAGE)
    assert len(pairs) > 10
    for file, name in pairs:
        source = (PACKAGE / file).read_text(encoding="utf-8")
        assert re.search(rf"(def|class) {re.escape(name.rpartition('.')[2])}\b", source), (file, name)
