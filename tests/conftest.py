"""What all tests share: no network, a cache of their own, and a fresh accelerate state for each test."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

# Nothing is read from or left in the caches of whoever runs the tests. Libraries read these names when they are
# imported, which test files do before any fixture runs.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="trainer_loop_tests_")
os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] + "/datasets"
os.environ["TRAINER_LOOP_CACHE"] = os.environ["HF_HOME"] + "/trainer_loop"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RANK", None)
# Models here are tiny: threads beside each other would take the cores from the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")

sys.path.insert(0, str(Path(__file__).parent))  # tests import each other's makers: tiny, scenarios


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay until the end: no collection of garbage shall look through them, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(autouse=True)
def forget_modules_of_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Modules that a test wrote and imported, such as my_lab, are not found by the next test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        spec = getattr(sys.modules[name], "__spec__", None)
        if spec is not None and folder in f"{spec.origin} {spec.submodule_search_locations}":
            del sys.modules[name]


@pytest.fixture
def own_dynamo():
    """Graphs and settings of torch.compile that no other test sees."""
    import torch._dynamo

    torch._dynamo.reset()
    with torch._dynamo.config.patch({}):
        yield
    torch._dynamo.reset()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the hub, which this process takes for the hub; nobody waits between two tries."""
    import types

    import huggingface_hub.utils._http
    from hub_server import TOKEN, serve
    from huggingface_hub import constants

    from trainer_loop.record import hub_access
    from trainer_loop.runtime.hub import hub_is_reachable

    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        clock = types.SimpleNamespace(sleep=hub.waits.append)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
        monkeypatch.setattr(hub_access, "time", clock)
        hub_is_reachable.cache_clear()
        yield hub
    hub_is_reachable.cache_clear()
    huggingface_hub.close_session()
