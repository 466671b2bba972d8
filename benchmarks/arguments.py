"""Arguments that several benchmarks share."""

import argparse
from pathlib import Path

from benchmarks.measure import RESULTS


def make_parser(document: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark; its help is the docstring of the module."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=_positive, default=rounds, help=f"turns of every side; default {rounds}")
    place = "folder of the JSON file that is written; default benchmarks/results, which the page is made of"
    parser.add_argument("--results", type=Path, default=RESULTS, help=place)
    return parser


def add_texts(
    parser: argparse.ArgumentParser, *, rows: int, held_out: int | None, max_length: int | None = 512
) -> None:
    """Add the arguments of a benchmark on real or made-up texts.

    Args:
        held_out: default number of held-out rows; None for no such argument.
        max_length: default number of tokens of a text; None likewise.
    """
    add_size(parser, "--rows", rows, "training rows")
    if held_out is not None:
        add_size(parser, "--held-out", held_out, "rows that are scored and not trained on")
    if max_length is not None:
        add_size(parser, "--max-length", max_length, "tokens at which a text is cut")
    parser.add_argument(
        "--data", type=Path, help="folder of train.parquet and test.parquet, text and label; else made up"
    )
    parser.add_argument(
        "--model", type=Path, help="folder of a pretrained encoder; else MiniLM-L6 where it is installed"
    )


def add_size(parser: argparse.ArgumentParser, name: str, default: int, meaning: str) -> None:
    parser.add_argument(name, type=_positive, default=default, help=f"{meaning}; default {default:,}")


def _positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return value
