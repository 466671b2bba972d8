"""Text generation, and continuation of texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from trainer_loop.components import refuse_less
from trainer_loop.errors import refuse

_LENGTH = 128  # default length of a generated text, in tokens
_CONTINUATION_LENGTH = 64  # default length of a continuation, in tokens
_ROWS = 32  # batch size for continuations
_LEAST = {"max_new_tokens": 1, "num_beams": 1, "no_repeat_ngram_size": 0}


@dataclass(frozen=True)
class Generation:
    """Options of text generation without sampling, see `evaluate.generate` in docs/config.md.

    Attributes:
        positions: Positions of a decoder, which limit the default length; None: no limit.
    """

    max_new_tokens: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    positions: int | None = None

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _LEAST if getattr(self, name) is not None}
        refuse_less(values, _LEAST, place="evaluate.generate")

    @property
    def length(self) -> int:
        """The maximum length of a text, in tokens."""
        return self.max_new_tokens or min(_LENGTH, self.positions or _LENGTH)

    def write(self, model: nn.Module, inputs: dict[str, Any], *, pad: int | None = None) -> Tensor:
        """Call `generate` of a transformers model, and return its token ids, `[B, T]`.

        Args:
            inputs: The inputs of the model.
            pad: The padding token after the end of a text; None: that of the model.
        """
        options: dict[str, Any] = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        options |= {} if pad is None else {"pad_token_id": pad}
        # Without these, transformers warns about sampling options in the generation config of the model.
        no_sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        tokens: Tensor = model.generate(  # type: ignore[operator]
            **inputs,
            **options,
            **no_sampling,
            max_new_tokens=self.length,
            num_beams=self.num_beams,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )
        return tokens


def count_vocabulary(model_config: Any) -> int:
    """Return the vocabulary size of the decoder."""
    return int(model_config.get_text_config(decoder=True).vocab_size)


def cut_at_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens before the first end token.

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
    """Return each text with its most likely continuation; None for a text without tokens.

    Args:
        model: A decoder of transformers.
        generation: Options of generation. Without a length, 64 tokens are generated, or as many as fit.
        positions: Positions of the model, for text and continuation together; None: no limit.
        origin_of: Returns the name of a text in error messages, from its number (from 0); None: there is only one.

    Raises:
        UserError: The model has too few positions.
    """
    ids = [list(row) for row in tokenizer(list(texts), return_token_type_ids=False, verbose=False)["input_ids"]]
    max_new_tokens = generation.max_new_tokens
    refuse(
        [
            ("" if origin_of is None else f"{origin_of(number)}: ") + fault
            for number, row in enumerate(ids)
            if (fault := _find_fault(len(row), max_new_tokens or 1, positions))
        ]
    )
    results: list[str | None] = [None] * len(texts)
    for numbers in _group_by_length(ids):
        num_tokens = len(ids[numbers[0]])
        room = _CONTINUATION_LENGTH if positions is None else positions - num_tokens
        rows = [ids[number] for number in numbers]
        options = replace(generation, max_new_tokens=max_new_tokens or min(_CONTINUATION_LENGTH, room))
        for number, row, new in zip(numbers, rows, _generate(model, tokenizer, rows, options), strict=True):
            before, whole = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (row, row + new))
            results[number] = join_continuation(texts[number], before, whole)
    return results


def _find_fault(num_tokens: int, num_new_tokens: int, positions: int | None) -> str | None:
    """Explain why a text cannot be continued, or return None."""
    if positions is None or positions - num_tokens >= num_new_tokens:
        return None
    left = positions - num_tokens
    return (
        f"max_new_tokens={num_new_tokens}: the text has {num_tokens} tokens, and the model has {positions} positions "
        "for both; " + ("give a shorter text" if left < 1 else f"at most {left} are left")
    )


def _group_by_length(ids: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield the numbers of texts of equal length, in batches. Without padding, each text gets what it gets alone."""
    by_length = sorted((number for number, row in enumerate(ids) if row), key=lambda number: len(ids[number]))
    for _, group in groupby(by_length, key=lambda number: len(ids[number])):
        numbers = list(group)
        yield from (numbers[start : start + _ROWS] for start in range(0, len(numbers), _ROWS))


def _generate(model: nn.Module, tokenizer: Any, rows: list[list[int]], generation: Generation) -> list[list[int]]:
    """Generate the continuations of rows of equal length, without the end token."""
    device = next(model.parameters()).device
    inputs = {"input_ids": torch.tensor(rows, device=device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(end if isinstance(end, list) else [] if end is None else [end])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    new_tokens = generation.write(model, inputs, pad=pad)[:, len(rows[0]) :].tolist()
    return [cut_at_end(row, ends) for row in new_tokens]


def join_continuation(text: str, decoded: str, whole: str) -> str:
    """Append the continuation to the original text.

    The new tokens cannot be decoded alone, because they would lose their first space.

    Args:
        decoded: The decoded tokens of the text.
        whole: The decoded tokens of the text and its continuation.
    """
    if not whole.startswith(decoded):  # the first new token changes the decoding of the end of the text
        return whole
    continuation = whole[len(decoded) :]
    if text.endswith(" ") and continuation[:1] == " " and continuation[:2] != "  ":
        continuation = continuation[1:]  # the text already ends with the space before the word
    return text + continuation
