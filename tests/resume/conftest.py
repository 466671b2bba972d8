"""One crash harness for all tests: the processes that they start and kill begin in it."""

from collections.abc import Iterator

import pytest
from harness import Bench, bench_in


@pytest.fixture(scope="session")
def bench(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_in(tmp_path_factory.mktemp("bench")) as made:
        yield made
