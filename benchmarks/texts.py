"""Texts for training and scoring: rows of parquet files, or made-up texts with the lengths of IMDb's."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Mean and standard deviation of the logarithm of the number of words in an IMDb review.
_MEAN_LOG_WORDS, _DEVIATION_LOG_WORDS = 5.23, 0.643
_FEWEST_WORDS, _MOST_WORDS = 10, 2500
_VOCABULARY = 5000
_CLASS_WORDS = 50  # words of each class; one word in ten of a text belongs to its class
_ROWS_AT_ONCE = 1000


def write_texts(path: Path, *, rows: int, source: Path | None, seed: int, longer: float = 1.0) -> None:
    """Write a parquet file with the columns `text` and `label` (0 or 1). Memory does not grow with `rows`.

    Args:
        rows: number of rows; rows of `source` repeat if it has fewer.
        source: file whose rows are sampled; None for made-up rows.
        longer: length of made-up texts relative to IMDb's.
    """
    texts, labels = (None, None) if source is None else _read(source)
    generator = np.random.default_rng(seed)
    schema = pa.schema({"text": pa.string(), "label": pa.int64()})
    order = None if texts is None else generator.permutation(len(texts))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, rows - start)
            if texts is None or labels is None or order is None:
                part = _make_up(count, generator, longer)
            else:
                chosen = order[np.arange(start, start + count) % len(order)]
                part = pa.table({"text": texts.take(chosen), "label": labels.take(chosen)})
            writer.write_table(part.cast(schema))


def _read(source: Path) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    table = pq.read_table(source, columns=["text", "label"])
    return table.column("text"), table.column("label")


def _make_up(rows: int, generator: np.random.Generator, longer: float) -> pa.Table:
    """Texts of random letters; a tenth of the words shows the label."""
    words = np.array(_make_words())
    labels = generator.integers(0, 2, rows)
    texts = []
    for label in labels:
        drawn = int(longer * generator.lognormal(_MEAN_LOG_WORDS, _DEVIATION_LOG_WORDS))
        length = min(max(drawn, _FEWEST_WORDS), int(longer * _MOST_WORDS))
        chosen = generator.integers(2 * _CLASS_WORDS, _VOCABULARY, length)
        telling = generator.random(length) < 0.1
        chosen[telling] = generator.integers(0, _CLASS_WORDS, int(telling.sum())) + _CLASS_WORDS * label
        texts.append(" ".join(words[chosen]))
    return pa.table({"text": texts, "label": labels})


def _make_words() -> list[str]:
    """The words, the same for every seed of the texts, so that a tokenizer for one file fits all."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words: dict[str, None] = {}
    while len(words) < _VOCABULARY:
        words.setdefault("".join(generator.choice(letters, generator.integers(3, 9))))
    return list(words)
