"""Texts that a model writes, and how it continues those that it is given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from trainer_loop.components import refuse_less
from trainer_loop.errors import refuse

_LENGTH = 128  # tokens, where it is not given
_CONTINUED = 64  # likewise, behind a text
_ROWS = 32  # that are continued at a time
_LEAST = {"max_new_tokens": 1, "num_beams": 1, "no_repeat_ngram_size": 0}


@dataclass(frozen=True)
class Generation:
    """How texts are written, without chance: see the fields of `evaluate.generate` in docs/config.md.

    positions: of a decoder, which limit a length that is not given; None: any number.
    """

    max_new_tokens: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    positions: int | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _LEAST if getattr(self, name) is not None}
        refuse_less(given, _LEAST, place="evaluate.generate")

    @property
    def length(self) -> int:
        """The most tokens of a text."""
        return self.max_new_tokens or min(_LENGTH, self.positions or _LENGTH)

    def write(self, model: nn.Module, inputs: dict[str, Any], *, pad: int | None = None) -> Tensor:
        """What the `generate` of a model of transformers returns, `[B, T]`.

        Args:
            model: The model.
            inputs: What it reads.
            pad: The token behind the end of a text; None: that of the model.
        """
        given: dict[str, Any] = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        given |= {} if pad is None else {"pad_token_id": pad}
        # What the generation config of a model says of sampling would be warned of.
        quiet = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        written: Tensor = model.generate(  # type: ignore[operator]
            **inputs,
            **given,
            **quiet,
            max_new_tokens=self.length,
            num_beams=self.num_beams,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )
        return written


def count_vocabulary(model_config: Any) -> int:
    """The tokens that a model chooses from when it writes; of an encoder with a decoder, those of the decoder."""
    return int(model_config.get_text_config(decoder=True).vocab_size)


def cut_at_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first one that ends a text.

    >>> cut_at_end([5, 6, 2, 0, 0], {2})
    [5, 6]
    """
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


@torch.no_grad()
def continue_texts(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    generation: Generation,
    positions: int | None,
    origin_of: Callable[[int], str] | None = None,
) -> list[str | None]:
    """Each text with its likeliest continuation; None for a text without tokens.

    Args:
        model: A decoder of transformers.
        tokenizer: Its tokenizer.
        texts: The texts.
        generation: How the continuation is written; if it has no length, of 64 tokens, or as many as fit.
        positions: Those of the model, for a text and its continuation; None: any number.
        origin_of: What errors call a text, by its number from 0; None: there is only one.

    Raises:
        UserError: There are not so many positions.
    """
    ids = [list(one) for one in tokenizer(list(texts), return_token_type_ids=False, verbose=False)["input_ids"]]
    asked = generation.max_new_tokens
    refuse(
        [
            ("" if origin_of is None else f"{origin_of(number)}: ") + fault
            for number, one in enumerate(ids)
            if (fault := _find_fault(len(one), asked or 1, positions))
        ]
    )
    continued: list[str | None] = [None] * len(texts)
    for numbers in _group(ids):
        given = len(ids[numbers[0]])
        length = asked or (_CONTINUED if positions is None else min(_CONTINUED, positions - given))
        rows = [ids[number] for number in numbers]
        written = _write(model, tokenizer, rows, replace(generation, max_new_tokens=length))
        for number, row, new in zip(numbers, rows, written, strict=True):
            before, whole = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (row, row + new))
            continued[number] = join_continuation(texts[number], before, whole)
    return continued


def _find_fault(given: int, asked: int, positions: int | None) -> str | None:
    """Why a text of so many tokens cannot be continued."""
    if positions is None or positions - given >= asked:
        return None
    left = positions - given
    return (
        f"max_new_tokens={asked}: the text has {given} tokens, and the model has {positions} positions for both; "
        + ("give a shorter text" if left < 1 else f"at most {left} are left")
    )


def _group(ids: Sequence[list[int]]) -> Iterator[list[int]]:
    """The numbers of texts of one length, a few at a time: without padding, each is continued as if it were alone."""
    by_length = sorted((number for number, one in enumerate(ids) if one), key=lambda number: len(ids[number]))
    for _, group in groupby(by_length, key=lambda number: len(ids[number])):
        numbers = list(group)
        yield from (numbers[start : start + _ROWS] for start in range(0, len(numbers), _ROWS))


def _write(model: nn.Module, tokenizer: Any, rows: list[list[int]], generation: Generation) -> list[list[int]]:
    """The tokens behind rows of one length, without the end token."""
    device = next(model.parameters()).device
    inputs = {"input_ids": torch.tensor(rows, device=device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(end if isinstance(end, list) else [] if end is None else [end])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    written = generation.write(model, inputs, pad=pad)[:, len(rows[0]) :].tolist()
    return [cut_at_end(row, ends) for row in written]


def join_continuation(text: str, given: str, whole: str) -> str:
    """A text as it was written, and what a model wrote behind it.

    given, whole: what the tokenizer makes of the tokens of the text alone, and with those behind it. Decoded by
    themselves, these would lack the space that begins them.
    """
    if not whole.startswith(given):  # the first token behind the text changes how its end is written
        return whole
    continuation = whole[len(given) :]
    if text.endswith(" ") and continuation[:1] == " " and continuation[:2] != "  ":
        continuation = continuation[1:]  # the space before a word, which was typed already
    return text + continuation
