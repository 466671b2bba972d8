"""The garbage collector while torch is imported."""

import gc
import sys

import pytest

from trainer_loop.runtime.imports import importing_torch


def test_the_first_import_is_left_out_of_garbage_collection(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    frozen = gc.get_freeze_count()
    with importing_torch():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_a_later_one_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    frozen = gc.get_freeze_count()
    with importing_torch():
        assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen  # what is frozen may still be freed
