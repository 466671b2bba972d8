"""Fill in the middle: splits a text in three parts, and moves the middle to the end, so that the model learns it.

See Bavarian et al. 2022, Efficient training of language models to fill in the middle, arXiv 2207.14255.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from trainer_loop.components import check_arguments
from trainer_loop.errors import UserError, refuse

_NUM_TOKENS = 3  # number of tokens that a split text gets


@dataclass(frozen=True)
class FillInTheMiddle:
    """Settings of `task.args.fim`.

    Attributes:
        rate: Probability that a text is split.
        spm_rate: Share of the split texts that have the suffix first (suffix, prefix, middle).
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    prefix_token: str = "<fim_prefix>"
    suffix_token: str = "<fim_suffix>"
    middle_token: str = "<fim_middle>"

    @property
    def tokens(self) -> tuple[str, str, str]:
        return self.prefix_token, self.suffix_token, self.middle_token

    def find_ids(self, tokenizer: Any) -> tuple[int, int, int]:
        """Return the ids of the three tokens. Raises UserError if the tokenizer lacks one."""
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in self.tokens if token not in vocabulary]:
            raise UserError(
                f"task.args.fim: the tokenizer has no token {', '.join(missing)}; name its own by prefix_token, "
                "suffix_token and middle_token, or add these to the tokenizer in the folder of the model: "
                f"tokenizer.add_tokens({missing})"
            )
        prefix, suffix, middle = (vocabulary[token] for token in self.tokens)
        return prefix, suffix, middle


def read_settings(settings: Mapping[str, Any]) -> FillInTheMiddle:
    """Check `task.args.fim`. Raises UserError with all its problems."""
    if not isinstance(settings, Mapping):
        raise UserError(f"task.args.fim: {settings}: it is a mapping, such as {{rate: 0.5, spm_rate: 0.5}}, or null")
    refuse(check_arguments(FillInTheMiddle, settings, place="task.args.fim", given=()))
    fim = FillInTheMiddle(**settings)
    problems = [
        f"task.args.fim.{name}: {value}: it must be a number from 0 to 1"
        for name, value in {"rate": fim.rate, "spm_rate": fim.spm_rate}.items()
        if not 0 <= value <= 1
    ]
    if fim.rate == 0:
        problems.append("task.args.fim.rate: 0: no text would be split; set task.args.fim to null")
    if len(set(fim.tokens)) < len(fim.tokens):
        problems.append(f"task.args.fim: {', '.join(map(str, fim.tokens))}: these must be three tokens")
    refuse(problems)
    return fim


@dataclass(frozen=True)
class TextSplitter:
    """Splits the texts of a chunk.

    Attributes:
        tokens: Ids of the three tokens of `fim`.
        begin: Token that a text may start with. It stays at the start. None: there is none.
        end: Token that ends a text. It stays at the end. None: a chunk is one text.
    """

    fim: FillInTheMiddle
    tokens: tuple[int, int, int]
    begin: int | None
    end: int | None

    def split(self, ids: Sequence[int], draw: int) -> list[int]:
        """Split each text of a chunk with probability `rate`.

        Args:
            ids: The tokens of the chunk.
            draw: The random seed.

        Returns:
            The same number of tokens.
        """
        draws = np.random.Generator(np.random.Philox(draw))
        ends = [place + 1 for place, token in enumerate(ids) if token == self.end]
        texts = (list(ids[start:stop]) for start, stop in pairwise([0, *ends, len(ids)]))
        return list(chain.from_iterable(self._split_text(text, draws) for text in texts))

    def _split_text(self, text: list[int], draws: np.random.Generator) -> list[int]:
        first, last = int(text[:1] == [self.begin]), len(text) - int(text[-1:] == [self.end])
        inner = text[first:last]
        is_split = draws.random() < self.fim.rate
        start, stop = sorted(draws.integers(0, len(inner) + 1, size=2).tolist())
        is_suffix_first = draws.random() < self.fim.spm_rate
        # The three tokens replace the last tokens of the suffix, or else the first tokens of the prefix.
        suffix_end = max(stop, len(inner) - _NUM_TOKENS)
        prefix_start = _NUM_TOKENS - (len(inner) - suffix_end)
        if not is_split or prefix_start > start:
            return text
        before, between, after = inner[prefix_start:start], inner[start:stop], inner[stop:suffix_end]
        prefix, suffix, middle = self.tokens
        if is_suffix_first:
            split = [prefix, suffix, *after, middle, *before, *between]
        else:
            split = [prefix, *before, suffix, *after, middle, *between]
        return [*text[:first], *split, *text[last:]]
