"""One bench for all tests: what it has trained once, uninterrupted, is compared with many runs."""

import pytest
from harness import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))
