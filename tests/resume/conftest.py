"""One bench for all tests: each uninterrupted run is trained once and compared with many interrupted runs."""

import pytest
from harness import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))
