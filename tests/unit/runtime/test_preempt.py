"""What asks a run to stop, without sending this process a signal that would end it."""

import os
import signal
import threading

import pytest

from trainer_loop.runtime.preempt import Preemption, catch_signals


def wait_until_requested(preemption):
    for _ in range(500):
        if preemption.requested:
            return True
        threading.Event().wait(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_held_is_a_request_and_nothing_else(number):
    before = signal.getsignal(number)
    with catch_signals() as preemption:
        preemption.defer_signals()
        assert not preemption.requested
        os.kill(os.getpid(), number)
        assert wait_until_requested(preemption)
        assert preemption.reason == ("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
    assert signal.getsignal(number) is before


def test_a_terminal_that_closes_is_not_heeded_where_the_user_said_so():
    """As `nohup` does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as preemption:
            preemption.defer_signals()
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            threading.Event().wait(0.05)
            assert not preemption.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_launchers_copy_of_a_ctrl_c_is_the_same_ctrl_c():
    with catch_signals() as preemption:
        preemption.defer_signals()
        os.kill(os.getpid(), signal.SIGINT)
        assert wait_until_requested(preemption)
        os.kill(os.getpid(), signal.SIGINT)  # would end this process if it were a second one


def test_the_time_that_was_given_counts_from_the_start_of_the_process():
    preemption = Preemption()
    preemption.defer_signals(max_minutes=1.0)
    assert not preemption.requested
    preemption.started -= 61
    preemption.defer_signals(max_minutes=1.0)
    assert preemption.requested
    assert preemption.reason == "train.max_time_minutes is over"


def test_who_was_not_asked_knows_that_another_was():
    assert Preemption().reason == "another process was asked to stop"


def test_a_worker_process_dies_of_the_signals_it_always_did_and_does_not_ask_its_parent():
    with catch_signals() as preemption:
        preemption.defer_signals()
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not preemption.requested


def test_outside_the_main_thread_no_signal_is_caught():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with catch_signals() as preemption:
            seen.append((preemption.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
