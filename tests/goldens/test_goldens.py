"""The shipped configs train to the recorded results, bit for bit on the platform these were made on.

`python tests/goldens/make.py` compares the examples and other ways to train, too: for a change of how the code is laid
out.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("make_goldens", Path(__file__).with_name("make.py"))
assert _SPEC is not None and _SPEC.loader is not None
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)

GOLDEN = json.loads(make.GOLDENS.read_text())
TRAINED = [name for name, (config, _) in make.CASES.items() if config == f"configs/{name}.yaml"]
# make test has these on two processes: texts, tokens, windows, generated texts, pairs of answers. make.py has all.
ON_TWO = ("imdb", "wikitext", "squad", "translate", "preference")
EXACT = ("weights", "optimizer", "metrics")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make.run_all(tmp_path_factory.mktemp("goldens"), TRAINED, on_two=ON_TWO)


def test_every_shipped_config_and_example_has_one():
    shipped = {path.relative_to(make.ROOT).as_posix() for path in (make.ROOT / "configs").glob("*.yaml")}
    shipped |= {path.relative_to(make.ROOT).as_posix() for path in (make.ROOT / "examples").glob("*/config.yaml")}
    assert shipped <= {config for config, _ in make.CASES.values()}
    assert set(GOLDEN["results"]["1"]) == set(GOLDEN["results"]["2"]) == set(make.CASES)


@pytest.mark.parametrize(
    ("name", "num_processes"), [(name, "1") for name in TRAINED] + [(name, "2") for name in ON_TWO]
)
def test_it_trains_to_the_recorded_results(name: str, num_processes: str, made: dict[str, Any]):
    result, golden = made["results"][num_processes][name], GOLDEN["results"][num_processes][name]
    if made["platform"] == GOLDEN["platform"]:
        assert {key: result[key] for key in EXACT} == {key: golden[key] for key in EXACT}
    for key in ("losses", "validation", "norm"):
        assert result[key] == pytest.approx(golden[key], rel=1e-4), key
