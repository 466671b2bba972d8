"""Sources that are streamed and drawn by weight: shares, passes, processes, resuming, the log, and what is refused."""

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import encode, make_loader, make_stream
from tiny import make_tokenizer

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.config.fields import Config
from trainer_loop.data.stream_loader import StreamLoader
from trainer_loop.data.stream_rows import ChunkStream, MixedStream, Row, draw_sources
from trainer_loop.description import describe_plan
from trainer_loop.record.logs import Console
from trainer_loop.testing import assert_resumes_exactly

WEIGHTS = st.lists(st.floats(0.05, 5), min_size=1, max_size=5)
SOURCES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3).filter(any), min_size=1, max_size=3)


# ------------------------------------------------------------------------------------------------------------ the draw


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 300), st.integers(0, 300))
def test_the_source_of_a_row_is_a_function_of_its_number(
    weights: list[float], start: int, seed: int, first: int, second: int
):
    whole = draw_sources(start, first + second, weights=weights, seed=seed).tolist()
    parts = [
        draw_sources(begin, count, weights=weights, seed=seed).tolist()
        for begin, count in ((start, first), (start + first, second))
    ]
    assert whole == parts[0] + parts[1]
    assert set(whole) <= set(range(len(weights)))


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 5))
def test_shares_follow_the_weights_in_every_stretch_of_rows(weights: list[float], start: int, seed: int):
    drawn = draw_sources(start, 10_000, weights=weights, seed=seed)
    for number, share in enumerate(np.array(weights) / sum(weights)):
        ahead = np.cumsum(drawn == number) - share * np.arange(1, 10_001)
        assert np.abs(ahead).max() < 10  # rows
        assert abs((drawn == number).mean() - share) < 0.01 * max(share, 0.1)


def test_seeds_draw_unlike_sources():
    drawn = [draw_sources(0, 100, weights=[1, 1], seed=seed).tolist() for seed in (1, 2)]
    assert drawn[0] != drawn[1]


# ---------------------------------------------------------------------------------------------------------- the stream


def make_mixed(sources: list[list[int]]) -> MixedStream:
    """Sources of shards of so many rows, by the names a, b and c; a source has a weight of its own."""
    names = "abc"[: len(sources)]
    return MixedStream(
        {name: make_stream(sizes) for name, sizes in zip(names, sources, strict=True)},
        weights=[3, 1, 2][: len(sources)],
        loss_weights=[1, 0.5, 2][: len(sources)],
        seed=7,
    )


@settings(deadline=None, max_examples=50)
@given(SOURCES)
def test_each_source_is_gone_through_again_and_again_in_the_order_of_its_epochs(sources: list[list[int]]):
    rows = list(islice(make_mixed(sources).read(0), 100))
    for name, sizes in zip("abc", sources, strict=False):
        of_source = [row.place for row in rows if row.source == name]
        alone = chain.from_iterable(make_stream(sizes).read(epoch) for epoch in range(101))
        assert of_source == [row.place for row in islice(alone, len(of_source))]
    drawn = draw_sources(0, 100, weights=[3, 1, 2][: len(sources)], seed=7)
    assert [row.source for row in rows] == ["abc"[number] for number in drawn]
    assert [row.weight for row in rows] == [{"a": 1, "b": 0.5, "c": 2}[row.source or ""] for row in rows]


@settings(deadline=None, max_examples=50)
@given(SOURCES, st.integers(0, 60), st.integers(0, 60))
def test_reading_goes_on_from_any_row(sources: list[list[int]], first: int, second: int):
    whole = list(islice(make_mixed(sources).read(0), first + second + 20))
    mark, rows = None, []
    for count in (first, second, 20):
        rows += list(islice(make_mixed(sources).read(0, mark), count))
        mark = json.loads(json.dumps(rows[-1].mark)) if rows else None
    assert rows == whole


def test_a_run_may_go_on_with_another_source_but_not_from_a_stream_that_was_no_mixture():
    rows = list(islice(make_mixed([[9], [7]]).read(0), 8))
    assert {row.source for row in rows} == {"a", "b"}
    more = list(islice(make_mixed([[9], [7], [5]]).read(0, rows[-1].mark), 12))
    first = {name: next(row.place for row in more if row.source == name) for name in "abc"}
    counts = Counter(row.source for row in rows)
    assert first == {"a": f"shard0 row {counts['a'] + 1}", "b": f"shard0 row {counts['b'] + 1}", "c": "shard0 row 1"}
    *_, plain = islice(make_stream([9]).read(0), 3)
    with pytest.raises(UserError, match="the checkpoint is of a stream without a mixture"):
        next(make_mixed([[9], [7]]).read(0, plain.mark))


def test_a_source_without_rows_is_told():
    with pytest.raises(UserError, match=r"^data\.mixture: b: train has no rows$"):
        list(islice(make_mixed([[3], [0, 0]]).read(0), 20))


def test_a_bad_row_is_told_with_its_source():
    def fail(rows: list[Row]) -> list[Row]:
        raise UserError("data.train: column 'text' is null in b.csv row 3")

    stream = MixedStream(
        {"a": make_stream([3]), "b": ChunkStream(make_stream([3]), fail, num_texts=2)},
        weights=[1, 1],
        loss_weights=[1, 1],
        seed=0,
    )
    with pytest.raises(UserError, match=r"^data\.mixture: b: train: column 'text' is null in b.csv row 3$"):
        list(islice(stream.read(0), 20))


# ---------------------------------------------------------------------------------------------------------- its batches


def make_mixed_loader(sources: list[list[int]], **options: Any) -> StreamLoader:
    return make_loader([], stream=make_mixed(sources), sources=list("abc"[: len(sources)]), **options)


def rows_of_steps(loader: StreamLoader, *, start: int, stop: int) -> list[list[tuple[int, str, float]]]:
    return [
        sorted(
            (row, str(microbatch.source), microbatch.weight)
            for microbatch in step.microbatches
            if not microbatch.is_dummy
            for row in microbatch.rows
        )
        for step in loader.steps(start=start, stop=stop)
    ]


@pytest.mark.parametrize("num_processes", [2, 3])
def test_every_number_of_processes_has_the_same_rows_and_goes_on_with_them(num_processes: int):
    sources = [[5, 4], [7], [2, 3]]
    alone = make_mixed_loader(sources, batch_size=5)
    whole = rows_of_steps(alone, start=0, stop=20)
    states, shares = [], []
    for index in range(num_processes):
        options = {"batch_size": 5, "num_processes": num_processes, "process_index": index}
        loader = make_mixed_loader(sources, **options)
        mine = rows_of_steps(loader, start=0, stop=9)
        states.append(json.dumps(loader.state_dict()))
        resumed = make_mixed_loader(sources, **options)
        resumed.load_state_dict(json.loads(states[-1]))
        shares.append(mine + rows_of_steps(resumed, start=9, stop=20))
    assert [sorted(chain.from_iterable(step)) for step in zip(*shares, strict=True)] == whole
    assert len(set(states)) == 1


def test_a_microbatch_has_rows_of_one_source_and_weight_and_counts_its_tokens():
    loader = make_mixed_loader([[20], [20], [20]], batch_size=12)
    for step in loader.steps(start=0, stop=10):
        for microbatch in step.microbatches:
            assert microbatch.weight == {"a": 1, "b": 0.5, "c": 2}[str(microbatch.source)]
            assert microbatch.num_targets == len(microbatch.rows) * microbatch.weight
            assert microbatch.num_tokens == int((microbatch.batch["input_ids"] != 0).sum())
        assert sum(microbatch.num_tokens for microbatch in step.microbatches) == step.num_tokens
        assert len({microbatch.source for microbatch in step.microbatches}) > 1


def test_chunks_have_texts_of_one_source():
    def join(rows: list[Row]) -> list[Row]:
        """One row of two texts, or of one."""
        texts = " + ".join(row.place for row in rows)
        return [rows[0]._replace(values=rows[0].values | {"texts": texts})]

    named = {
        name: ChunkStream(stream, join, num_texts=2) for name, stream in make_mixed([[4, 4], [7], [3]]).streams.items()
    }
    mixed = MixedStream(named, weights=[3, 1, 2], loss_weights=[1, 1, 1], seed=7)
    rows = list(islice(mixed.read(0), 60))
    for name, chunks in named.items():
        alone = [row.values["texts"] for row in chain(chunks.read(0), chunks.read(1), chunks.read(2))]
        of_source = [row.values["texts"] for row in rows if row.source == name]
        assert of_source[: len(alone)] == alone[: len(of_source)]
    assert encode(rows[:1])[0].source == rows[0].source


# -------------------------------------------------------------------------------------------------------------- a run


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def describe_model(folder: Path, kind: str, sizes: dict[str, int]) -> str:
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return json.dumps({"type": kind, "tokenizer": str(folder / "tokenizer"), "overrides": sizes})


def make_config(folder: Path, *overrides: str, without: tuple[str, ...] = ()) -> Config:
    """A classifier of two sources, whose columns have other names; the texts of each have words of their own."""
    for part, number in (("a", 7), ("b", 5)):
        rows = [{"text": f"w{n} w{n + 1}", "label": "good", "trust": 0.5 + n % 2} for n in range(number)]
        write(folder / f"praise-{part}.jsonl", rows)
    write(folder / "blame.jsonl", [{"review": f"w{20 + n}", "stars": "bad", "trust": 1} for n in range(6)])
    mixture = [
        {"name": "praise", "train": str(folder / "praise-*.jsonl"), "weight": 3},
        {"name": "blame", "train": str(folder / "blame.jsonl"), "weight": 1, "loss_weight": 0.5}
        | {"columns": {"text": "review", "label": "stars"}},
    ]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    arguments = {
        "model": describe_model(folder, "bert", sizes),
        "data.mixture": json.dumps(mixture),
        "data.streaming": "true",
        "data.shuffle_rows": "8",
        "data.label_names": "[good, bad]",
        "data.max_length": "16",
        "data.cache_dir": str(folder / "cache"),
        "run_dir": str(folder / "run"),
        "batch.size": "6",
        "train": "{steps: 8, precision: no, threads: 1}",
        "checkpoint.every": "8",
        "evaluate.every": "never",
    }
    given = [f"{key}={value}" for key, value in arguments.items() if key not in without]
    return load_config(None, [*given, *overrides])


class Said(Console):
    """Keeps what it says."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        self.lines.append(line)


def make_loop(config: Config, console: Console | None = None) -> TrainingLoop:
    return build(config, console=console or Console(enabled=False))


def test_a_run_streams_its_sources_by_weight_each_with_its_own_columns_and_logs_each(tmp_path: Path):
    console = Said()
    validation = write(tmp_path / "validation.jsonl", [{"text": "w1 w2", "label": "bad"}] * 3)
    config = make_config(tmp_path, "log.every=8", f"data.validation={validation}", "evaluate.every=8")
    loop = make_loop(config, console)
    assert "train: mixture: praise 75.0%; blame 25.0%; streamed, shuffled within 8 rows" in console.lines
    assert "praise: train: 2 files" in console.lines
    assert "praise: train, first rows: 12 rows; labels: good 12 (100.0%), bad 0 (0.0%)" in console.lines
    assert "mixture: praise 75.0%; blame 25.0%" in describe_plan(config, loop)
    loop.fit()
    origins = Counter(place.split("/")[-1].split()[0] for step in range(8) for place in loop.data.train.origins(step))
    assert origins["blame.jsonl"] == 12 and origins.total() == 48
    assert abs(origins["praise-a.jsonl"] - 21) <= 4  # 7 of 12 rows
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/accuracy" in row for row in rows)
    assert not any("epoch" in row for row in rows)
    assert console.lines.count("validation at step 8") == 1
    (row,) = [row for row in rows if "praise/loss" in row]
    assert (row["praise/row_share"], row["blame/row_share"]) == (0.75, 0.25)
    assert (row["praise/token_share"], row["blame/token_share"]) == (pytest.approx(72 / 84), pytest.approx(12 / 84))
    mean = (row["praise/loss"] * 36 + row["blame/loss"] * 12 * 0.5) / 42
    assert row["loss"] == pytest.approx(mean, abs=1e-6)
    assert "mixture: praise 75.0%; blame 25.0%" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path):
    assert_resumes_exactly(make_config(tmp_path, "data.weight=trust"), steps=8)


def test_a_row_has_the_weight_of_its_column_times_that_of_its_source(tmp_path: Path):
    loop = make_loop(make_config(tmp_path, "data.weight=trust"))
    weights = {(m.source, m.weight) for step in loop.data.train.steps(start=0, stop=8) for m in step.microbatches}
    assert weights == {("praise", 0.5), ("praise", 1.5), ("blame", 0.5)}


def test_the_rows_of_a_source_may_have_no_weights(tmp_path: Path):
    config = make_config(tmp_path, "data.weight=trust")
    config.data.mixture[1]["columns"]["data.weight"] = None
    write(tmp_path / "blame.jsonl", [{"review": "w20", "stars": "bad"}] * 6)
    train = make_loop(config).data.train
    weights = {(m.source, m.weight) for step in train.steps(start=0, stop=8) for m in step.microbatches}
    assert weights == {("praise", 0.5), ("praise", 1.5), ("blame", 0.5)}


def test_a_language_model_joins_the_texts_of_one_source_only(tmp_path: Path):
    for name, first in (("low", 0), ("high", 20)):
        rows = [{"text": " ".join(f"w{first + (n + k) % 9}" for k in range(n % 4 + 1))} for n in range(30)]
        write(tmp_path / f"{name}.jsonl", rows)
    mixture = [{"name": name, "train": str(tmp_path / f"{name}.jsonl"), "weight": 1} for name in ("low", "high")]
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    config = make_config(
        tmp_path,
        "task.name=causal_lm",
        f"model={describe_model(tmp_path, 'gpt2', sizes)}",
        f"data.mixture={json.dumps(mixture)}",
        without=("data.label_names", "model"),
    )
    loop = make_loop(config)
    found = set()
    for step in loop.data.train.steps(start=0, stop=8):
        for microbatch in step.microbatches:
            words = microbatch.batch["input_ids"]
            found.add(microbatch.source)
            is_high = words >= 22  # tokens 0 and 1 are special
            assert (is_high if microbatch.source == "high" else ~is_high)[words > 1].all()
    assert found == {"low", "high"}
    assert_resumes_exactly(config, steps=4)


def test_a_source_may_be_a_hub_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load_builder = datasets.load_dataset_builder
    feature = datasets.ClassLabel(names=["good", "bad"])
    features = datasets.Features({"review": datasets.Value("string"), "stars": feature})
    rows = datasets.Dataset.from_dict({"review": ["w30", "w31"] * 3, "stars": [1, 0] * 3}, features=features)
    rows.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: load_builder(str(tmp_path / "set")))
    config = make_config(tmp_path)
    praise, blame = config.data.mixture
    hub = blame | {"train": "train", "dataset": "lab/set"}
    with pytest.raises(UserError) as refused:  # words here, numbers of classes there
        make_loop(make_config(tmp_path, f"data.mixture={json.dumps([praise, hub])}"))
    assert refused.value.problems == [
        "data.mixture: the labels of blame stand for 0 = good, 1 = bad, those of praise for 'good' = good, "
        "'bad' = bad; write them alike"
    ]
    numbers = write(tmp_path / "numbers.jsonl", [{"text": f"w{n}", "label": n % 2} for n in range(9)])
    mixture = [praise | {"train": str(numbers)}, hub]
    loop = make_loop(make_config(tmp_path, f"data.mixture={json.dumps(mixture)}"))
    loop.fit()
    places = {place.rpartition(" ")[0] for step in range(8) for place in loop.data.train.origins(step)}
    assert places == {f"{numbers} line", "lab/set[train] row"}


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps=", "train.steps is null, but a data.mixture that is streamed has no epochs"),
        ("checkpoint.every=epoch", r"checkpoint.every is 'epoch', but .* set checkpoint.every to a number of steps$"),
        ("data.label_names=", "data.mixture: blame: data.label_names=null: .* the first 6 rows have 'bad'"),
        ("data.label_names=[good, dire]", "data.mixture: blame: train: column 'stars' has an unknown label in 6 rows"),
        ("data.weight=worth", "data.mixture: praise: train: no column 'worth' for data.weight; it has text, label"),
        ("data.limit.train=5", "data.limit.train is 5, but no sample of a stream can be drawn"),
    ],
)
def test_keys_and_rows_that_do_not_go_with_it_are_refused(override: str, told: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"(?m){told}"):
        make_loop(make_config(tmp_path, override))


def test_what_is_wrong_with_the_sources_is_told_of_all_at_once(tmp_path: Path):
    config = make_config(tmp_path)
    write(tmp_path / "blame.jsonl", [{"text": "w1", "stars": "bad"}])
    write(tmp_path / "praise-b.jsonl", [])
    with pytest.raises(UserError) as refused:
        make_loop(config)
    empty, lacking = refused.value.problems
    assert empty.startswith("data.mixture: praise: ") and empty.endswith("praise-b.jsonl is empty")
    assert lacking == ("data.mixture: blame: train: no column 'review' for text; it has text, stars: set its columns")
    validation = write(tmp_path / "validation.jsonl", [{"text": "w1", "label": "dire"}])
    with pytest.raises(UserError, match=r"data\.validation: column 'label' has an unknown label in 1 row: .*'dire'"):
        make_loop(make_config(tmp_path, f"data.validation={validation}"))
    (tmp_path / "blame.jsonl").unlink()
    with pytest.raises(UserError, match=r"data.mixture: blame: train.*blame.jsonl"):
        make_loop(config)
    with pytest.raises(UserError, match=r"data\.mixture: training rows are given, which would take its place"):
        build(config, rows={"train": [{"text": "w1", "label": "good"}]}, console=Console(enabled=False))


def test_rows_without_a_text_are_dropped_in_each_source(tmp_path: Path):
    config = make_config(tmp_path, "data.missing=drop")
    write(tmp_path / "blame.jsonl", [{"review": "", "stars": "bad"}, {"review": "w21", "stars": "bad"}])
    console = Said()
    loop = make_loop(config, console)
    loop.fit()
    places = {place.split("/")[-1] for step in range(8) for place in loop.data.train.origins(step)}
    assert {place for place in places if place.startswith("blame")} == {"blame.jsonl line 2"}
    assert any(line.startswith("blame: train: ") and "line 1 has no 'review'" in line for line in console.lines)
