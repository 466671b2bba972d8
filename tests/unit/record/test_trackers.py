"""A tracker that fails costs one warning, whenever it fails, and no other tracker."""

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from trainer_loop.record.trackers import start_trackers


class Tracker(GeneralTracker):
    """Fails in one of its methods."""

    requires_logging_directory = False
    tracker = "its own run"

    def __init__(self, name: str, fails_in: str, error: BaseException):
        self.name = name
        super().__init__()
        self.fails_in = fails_in
        self.error = error
        self.calls: list[str] = []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method == self.fails_in:
            raise self.error

    def start(self):
        self._call("start")

    def store_init_configuration(self, values):
        self._call("store_init_configuration")

    def log(self, values, step=None, **options):
        self._call("log")

    def finish(self):
        self._call("finish")


METHODS = ["start", "store_init_configuration", "log", "finish"]


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), OSError(28, "No space left on device"), SystemExit(1)])
@pytest.mark.parametrize("fails_in", METHODS)
def test_it_fails_alone_and_once_for_the_reader(fails_in, error):
    faulty, sound = Tracker("faulty", fails_in, error), Tracker("sound", "", error)
    accelerator, warnings = Accelerator(cpu=True, log_with=[faulty, sound]), []
    start_trackers(accelerator, project="p", config={"lr": 1.0}, arguments={}, warn=warnings.append)
    for step in range(6):
        accelerator.log({"loss": 1.0}, step=step)
    accelerator.end_training()
    (warning,) = warnings
    assert warning.startswith(f"tracker faulty failed: {type(error).__name__}: ")
    assert "\n" not in warning
    assert sound.calls == ["start", "store_init_configuration", *["log"] * 6, "finish"]
    assert faulty.calls.count("log") == {"log": 3, "finish": 6}.get(fails_in, 0)


def test_whoever_asks_accelerate_for_a_tracker_gets_what_he_got_before():
    sound = Tracker("sound", "", RuntimeError())
    accelerator = Accelerator(cpu=True, log_with=[sound])
    start_trackers(accelerator, project="p", config={}, arguments={}, warn=pytest.fail)
    assert accelerator.get_tracker("sound", unwrap=True) == "its own run"
    assert accelerator.get_tracker("sound").calls == ["start", "store_init_configuration"]
