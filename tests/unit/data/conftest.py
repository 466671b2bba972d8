"""Data tests write to temporary folders only, the caches of libraries included."""

from pathlib import Path

import datasets
import pytest


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, so that files go by their names alone."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here
