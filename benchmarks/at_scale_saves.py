"""The checkpoint of many writers, for the benchmark `at_scale`."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.workplace import MINILM
from trainer_loop.record.checkpoint_files import (
    AVERAGES,
    INDEX,
    MANIFEST,
    OPTIMIZER,
    SCHEDULER,
    STATE,
    WEIGHTS,
    find_fault,
    part_name,
    seal,
)
from trainer_loop.record.checkpoint_parts import CheckpointReader
from trainer_loop.record.checkpoint_writer import CheckpointWriter
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.state import TrainState

_STEP = 1
_LOOKED_AT = 8  # processes whose reading is timed


def save_and_read(folder: str, num_writers: int, num_readers: Sequence[int]) -> dict[str, float]:
    """Seconds to save a checkpoint of so many processes, a thread for each, to verify it, and to read it on others."""
    run_dir = RunDir(Path(folder))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(MINILM.type, **MINILM.fields))
    shapes = {f"{file}/{name}": value.shape for file in (WEIGHTS, AVERAGES) for name, value in model.named_parameters()}
    files = [_make_files(shapes, index, num_writers) for index in range(num_writers)]
    gather = _Gather(num_writers)

    def write(index: int) -> str | None:
        writer = CheckpointWriter(
            run_dir,
            Console(enabled=False),
            gather=lambda value: gather(index, value),
            is_main_process=index == 0,
        )
        facts = {
            "run": "benchmark",
            "step": _STEP,
            "num_processes": num_writers,
            "plan": {},
            "config": {},
            "versions": {},
        }
        with gather.ended_by_errors():
            return writer.write(files[index], step=_STEP, best_step=None, facts=facts).fault

    with ThreadPoolExecutor(num_writers) as threads:
        began = time.perf_counter()
        faults = list(threads.map(write, range(num_writers)))
        saved = time.perf_counter()
    assert faults == [None] * num_writers
    path = run_dir.checkpoint(_STEP)
    fault = find_fault(path)
    verified = time.perf_counter()
    assert fault is None, fault
    manifest = (path / MANIFEST).read_text()
    result = {
        "saving, a thread for each process": saved - began,
        "verifying, on one process": verified - saved,
        "sealing": _time_sealing(path),
        "manifest_kilobytes": len(manifest) / 2**10,
    }
    for number in num_readers:
        result[f"reading, each of {number:,}"] = _time_reading(path, number)
    return result


def _make_files(shapes: dict[str, torch.Size], index: int, num_parts: int) -> dict[str, Any]:
    """What process `index` writes; see `split_snapshot`."""
    part = {}
    for name, shape in shapes.items():
        begin, end = _find_rows(shape, index, num_parts)
        if begin < end:
            part[name] = torch.zeros(end - begin, *shape[1:])
    files: dict[str, Any] = {part_name(index, num_parts): part}
    if index == 0:
        files |= {STATE: TrainState(step=_STEP).state_dict(), OPTIMIZER: {}, SCHEDULER: {}}
        files[INDEX] = {"num_parts": num_parts, "shapes": {name: list(shape) for name, shape in shapes.items()}}
    return files


def _find_rows(shape: Sequence[int], index: int, num_parts: int) -> tuple[int, int]:
    size = math.ceil(shape[0] / num_parts)
    return min(index * size, shape[0]), min((index + 1) * size, shape[0])


def _time_sealing(path: Path) -> float:
    manifest = {"files": {file.name: {"bytes": 1, "crc32": "0" * 8} for file in path.iterdir()}}
    began = time.perf_counter()
    seal(manifest)
    return time.perf_counter() - began


def _time_reading(path: Path, num_processes: int) -> float:
    """Seconds in which one of so many processes opens the checkpoint and reads its rows of all tensors."""
    looked_at = range(0, num_processes, max(num_processes // _LOOKED_AT, 1))
    began = time.perf_counter()
    for index in looked_at:
        reader = CheckpointReader(path)
        for tensor in (*reader.tensors(WEIGHTS).values(), *reader.tensors(AVERAGES).values()):
            begin, end = _find_rows(tensor.shape, index, num_processes)
            read = tensor[(slice(begin, end), *(slice(None) for _ in tensor.shape[1:]))]
            assert len(read) == end - begin
    return (time.perf_counter() - began) / len(looked_at)


class _Gather:
    """Gives the values of all threads to each of them."""

    def __init__(self, count: int):
        self._values: list[Any] = [None] * count
        self._barrier = threading.Barrier(count)

    def __call__(self, index: int, value: Any) -> list[Any]:
        self._values[index] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    @contextlib.contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """No thread waits for one that an error ended."""
        try:
            yield
        except BaseException:
            self._barrier.abort()
            raise
