"""What `from trainer_loop import ...` gives, and what it costs."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import trainer_loop

ROOT = Path(__file__).parents[2]
NAMES = [name for name in trainer_loop.__all__ if name != "__version__"]


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_the_public_names_are_these():
    assert sorted(trainer_loop.__all__) == dir(trainer_loop)
    assert set(NAMES) == {
        *("build", "load_config", "TrainingLoop", "Task", "Column", "Predictor", "losses", "testing"),
        *("UserError", "Preempted", "Diverged"),
    }


def test_a_name_means_the_same_before_and_after_every_module_was_imported():
    program = """
import importlib, pkgutil, types, trainer_loop
names = [name for name in trainer_loop.__all__ if name != "__version__"]
before = {name: getattr(trainer_loop, name) for name in names}
for module in pkgutil.walk_packages(trainer_loop.__path__, "trainer_loop."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in names:
    assert getattr(trainer_loop, name) is before[name], name
    assert before[name].__name__.rpartition(".")[2] == name
print([name for name in names if isinstance(before[name], types.ModuleType)])
"""
    assert run(program) == "['losses', 'testing']"


def test_no_module_has_the_name_of_something_else_that_is_public():
    """Importing such a module would put it in the place of the function."""
    for module in pkgutil.iter_modules(trainer_loop.__path__):
        if module.name in NAMES:
            assert getattr(trainer_loop, module.name) is importlib.import_module(f"trainer_loop.{module.name}")


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(trainer_loop.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, "only `x as x` is exported to those who import from here"
            seen[alias.name] = getattr(importlib.import_module(str(statement.module)), alias.name)
    assert seen == {name: getattr(trainer_loop, name) for name in NAMES}
    assert Path(trainer_loop.__file__).with_name("py.typed").exists()


def test_importing_it_takes_less_than_50_milliseconds_and_no_torch():
    program = """
import sys, time; began = time.process_time(); import trainer_loop; seconds = time.process_time() - began
from trainer_loop import UserError, load_config
assert not {"torch", "transformers", "datasets"} & set(sys.modules); print(seconds)
"""
    assert min(float(run(program)) for _ in range(3)) < 0.05


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="'trainer_loop' has no attribute 'biuld'"):
        trainer_loop.biuld  # noqa: B018
    with pytest.raises(ImportError, match="biuld"):
        from trainer_loop import biuld  # noqa: F401


def test_the_version_is_that_of_the_package():
    assert 'path = "trainer_loop/__init__.py"' in (ROOT / "pyproject.toml").read_text()
    assert trainer_loop.__version__.count(".") == 2
