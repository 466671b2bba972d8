"""Requests a second of the service and how long they take, joined and one at a time, and its memory under load.

    python -m benchmarks.serving
    python -m benchmarks.serving --seconds 60 --rounds 1

Clients on this machine send one text a request over connections that stay open, each as soon as it has the answer to
the one before. Service and clients share the cores. Every side starts the command in a process of its own and ends it
with SIGTERM. The differences are:

- trainer_loop: the defaults; requests that wait are predicted together.
- one request at a time: the same clients, `batch_rows=1`.
- one client: the defaults, and no other client to be joined with.

Every request must be answered, and the probabilities of all sides must agree to 1e-6. At last the service is under load
for `--memory-seconds`, and its memory is read from its /metrics.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import module_path
from benchmarks.measure import compare, publish, take_turns
from benchmarks.workplace import Workplace, make_workplace

_SHORT = 20  # words
_WARM = 2.0  # seconds
_SIDES: dict[str, tuple[list[str], bool]] = {  # keys of the command, and whether there are several clients
    "trainer_loop": ([], True),
    "one request at a time": (["batch_rows=1"], True),
    "one client": ([], False),
}


@dataclass
class Load:
    """What clients measured: seconds of every request, and the probability of each text by its number."""

    seconds: list[float] = field(default_factory=list)
    answers: dict[int, float] = field(default_factory=dict)
    lasted: float = 0.0


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_texts(parser, rows=500, held_out=None, max_length=None)
    add_size(parser, "--clients", 32, "clients at a time")
    add_size(parser, "--seconds", 15, "seconds of load for each length")
    add_size(parser, "--memory-seconds", 60, "seconds of load while the memory is read")
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=None, data=options.data, model=options.model) as place:
        texts = _read_texts(place)
        lengths = {f"of {_SHORT} words": [_cut(text) for text in texts], "as long as IMDb's": texts}
        sides = {name: lambda name=name: _measure(place, name, lengths, options) for name in _SIDES}
        outcomes = take_turns(sides, rounds=options.rounds)
        memory = _watch_memory(place, lengths[f"of {_SHORT} words"], options)
        settings = place.described | {
            name: getattr(options, name) for name in ("clients", "seconds", "memory_seconds", "rounds")
        }
    comparisons = []
    for length in lengths:
        loads = {side: [outcome[length] for outcome in each] for side, each in outcomes.items()}
        furthest = _find_furthest(loads)
        if furthest > 1e-6:
            print(f"the sides did not do the same work: probabilities of texts {length} differ by {furthest:.2g}")
            return 1
        rates = {side: [len(load.seconds) / load.lasted for load in each] for side, each in loads.items()}
        note = f"probabilities differ by {furthest:.1g} at most"
        base = "one request at a time"
        comparisons.append(compare(f"texts {length}", "requests a second", rates, base=base, notes=[note]))
        for percent in (50, 99):
            figures = {
                side: [1000 * float(np.percentile(load.seconds, percent)) for load in each]
                for side, each in loads.items()
            }
            title = f"texts {length}, {percent} % of requests are answered within"
            comparisons.append(compare(title, "milliseconds", figures, base=base))
    comparisons.append(compare("memory of the service under load", "MB", memory))
    publish("serving", comparisons, settings=settings, folder=options.results)
    return 0


def _measure(place: Workplace, side: str, lengths: dict[str, Sequence[str]], options: Any) -> dict[str, Load]:
    keys, has_many = _SIDES[side]
    with _serving(place, keys) as port:
        clients = options.clients if has_many else 1
        loads = {}
        for length, texts in lengths.items():
            _put_load(port, texts, clients=clients, seconds=_WARM)
            loads[length] = _put_load(port, texts, clients=clients, seconds=options.seconds)
        return loads


def _watch_memory(place: Workplace, texts: Sequence[str], options: Any) -> dict[str, list[float]]:
    """Megabytes after a quarter of the time, and at its end; for each round."""
    seconds = options.memory_seconds
    figures: dict[str, list[float]] = {f"after {seconds // 4} seconds": [], f"after {seconds} seconds": []}
    for _ in range(options.rounds):
        with _serving(place, []) as port:
            for name, part in zip(figures, (seconds // 4, seconds - seconds // 4), strict=True):
                _put_load(port, texts, clients=options.clients, seconds=part)
                figures[name].append(_read_memory(port) / 2**20)
    return figures


@contextlib.contextmanager
def _serving(place: Workplace, keys: Sequence[str]) -> Iterator[int]:
    """The service in a process of its own; its port."""
    words = [sys.executable, "-m", "trainer_loop.serve", f"model={place.model}", "port=0", *keys]
    environment = {**place.environment, "PYTHONPATH": module_path()}
    output = place.root / "service.txt"
    with output.open("w") as stream:
        process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=stream, stderr=stream)
    try:
        while (found := re.search(r"at http://[\d.]+:(\d+);", output.read_text())) is None:
            assert process.poll() is None, output.read_text()
            time.sleep(0.1)
        yield int(found[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, output.read_text()
    finally:
        process.kill()


def _put_load(port: int, texts: Sequence[str], *, clients: int, seconds: float) -> Load:
    """Send requests from so many threads, until the time is over."""
    load, numbers, lock = Load(), count(), threading.Lock()
    began = time.perf_counter()
    failures: list[BaseException] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while time.perf_counter() - began < seconds:
                number = next(numbers) % len(texts)
                sent = time.perf_counter()
                probability = _ask(connection, texts[number])
                with lock:
                    load.seconds.append(time.perf_counter() - sent)
                    load.answers[number] = probability
        except (OSError, http.client.HTTPException, AssertionError) as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.lasted = time.perf_counter() - began
    assert not failures, failures[0]
    return load


def _ask(connection: http.client.HTTPConnection, text: str) -> float:
    body = json.dumps({"rows": [{"text": text}]}).encode()
    connection.request("POST", "/predict", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    assert answer.status == 200, told
    (row,) = told["predictions"]
    return float(row["probability"])


def _read_memory(port: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    found = re.search(r"^process_resident_memory_bytes (\S+)", connection.getresponse().read().decode(), re.MULTILINE)
    connection.close()
    assert found is not None, "the service reports its memory"
    return float(found[1])


def _find_furthest(loads: dict[str, list[Load]]) -> float:
    """The largest difference between two answers to one text."""
    answers: dict[int, list[float]] = {}
    for load in (load for each in loads.values() for load in each):
        for number, probability in load.answers.items():
            answers.setdefault(number, []).append(probability)
    return max(max(each) - min(each) for each in answers.values())


def _read_texts(place: Workplace) -> list[str]:
    import pyarrow.parquet as pq

    return [str(text) for text in pq.read_table(place.train, columns=["text"])["text"].to_pylist()]


def _cut(text: str) -> str:
    return " ".join(text.split()[:_SHORT])


if __name__ == "__main__":
    sys.exit(main())
