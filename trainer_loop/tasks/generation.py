"""Texts that a model writes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer_loop.components import refuse_less

_LENGTH = 128  # where it is not given
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
