"""Conversations as a chat template writes them, and which of their tokens are answers of the assistant.

A template marks the answers itself, between `{% generation %}` and `{% endgeneration %}`, or they are found by writing
the beginnings of the conversation: an answer is what the conversation up to it has more than the one before it, with
the header of an answer behind that.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from trainer_loop.data.messages import Message
from trainer_loop.data.wording import shorten
from trainer_loop.errors import in_one_line

Spans = Literal["auto", "marks", "prefixes"]

_PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateFault(Exception):
    """Why a conversation cannot be trained on under a template, as the rest of a sentence."""


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a conversation.

    ids: `[T]`. is_answer: `[T]`, true for a token of an answer and for the one that ends it. prompt_length: tokens
    before the last answer.
    """

    ids: list[int]
    is_answer: list[bool]
    prompt_length: int


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a tokenizer. spans: how answers are found; auto: by the marks of the template, if it has any."""

    tokenizer: Any
    spans: Spans

    @property
    def has_marks(self) -> bool:
        """Whether the template marks the answers."""
        return bool(_MARK.search(self.tokenizer.get_chat_template()))

    def encode(self, messages: Sequence[Message], tools: Any, *, only_last: bool, compares: bool) -> EncodedChat:
        """The tokens of a conversation; one that does not end with an answer gets the header of one.

        Args:
            only_last: only the last answer counts.
            compares: where both are possible, the marks are compared with what rendering finds.

        Raises:
            TemplateFault: the template refuses the conversation, or its answers cannot be found.
        """
        if messages[-1]["role"] != "assistant":
            text = self._render(messages, tools, asks=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return EncodedChat(ids, [False] * len(ids), len(ids))
        text = self._render(messages, tools)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if self.spans == "marks" or (self.spans == "auto" and self.has_marks):
            answers = self._find_marked(messages, tools, ids)
            if compares and self.spans == "auto":
                self._compare(answers, messages, tools, text, ids, offsets)
        else:
            numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
            numbers = numbers[-1:] if only_last else numbers
            answers = list(self._find_rendered(messages, tools, numbers, text, ids, offsets))
        if not answers:
            raise TemplateFault("has no token of an answer under the chat template of the tokenizer")
        is_answer = [False] * len(ids)
        for start, end in answers[-1:] if only_last else answers:
            is_answer[start:end] = [True] * (end - start)
        return EncodedChat(ids, is_answer, answers[-1][0])

    def find_ends(self) -> set[int]:
        """The tokens that end an answer: the tokenizer's own, and the one that the template writes."""
        own = self.tokenizer.eos_token_id
        ends = set() if own is None else {own}
        try:
            chat = self.encode(_PROBE, None, only_last=True, compares=False)
        except TemplateFault:  # a template may take other conversations only
            return ends
        last = next(token for token, is_one in zip(chat.ids[::-1], chat.is_answer[::-1], strict=True) if is_one)
        return ends | ({last} & self._special)

    def _render(self, messages: Sequence[Message], tools: Any, *, asks: bool = False) -> str:
        """asks: the header of an answer stands at the end."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=asks
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
        ) as error:  # a template's own checks, or what it cannot read
            raise TemplateFault(f"is refused by the chat template: {in_one_line(error, at_most=200)}") from error
        return text

    def _find_marked(self, messages: Sequence[Message], tools: Any, ids: Sequence[int]) -> list[tuple[int, int]]:
        try:
            marked = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )["assistant_masks"]
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateFault(f"is refused by the chat template: {in_one_line(error, at_most=200)}") from error
        return [self._cut(ids, start, end) for start, end in _list_runs(marked)]

    def _find_rendered(
        self,
        messages: Sequence[Message],
        tools: Any,
        numbers: Sequence[int],
        text: str,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[int, int]]:
        """numbers: of the messages that are answers. text: the whole conversation, with its tokens."""
        for number in numbers:
            whole = self._render(messages[: number + 1], tools) if number + 1 < len(messages) else text
            before = self._render(messages[:number], tools, asks=True) if number else self._find_header(messages, whole)
            if not whole.startswith(before) or not text.startswith(whole):
                raise TemplateFault(
                    f"has an answer, message {number + 1}, that the chat template writes otherwise where the "
                    "conversation ends with it; mark answers in the template by {% generation %}, or set "
                    "task.args.train_on=last"
                )
            inside = [place for place, (a, b) in enumerate(offsets) if a < len(whole) and b > max(len(before), a)]
            if inside:
                yield self._cut(ids, inside[0], inside[-1] + 1)

    def _find_header(self, messages: Sequence[Message], whole: str) -> str:
        """What stands before an answer that begins a conversation. whole: the text of that message."""
        first = messages[:1]
        header = self._render(first, None, asks=True).removeprefix(self._render(first, None))
        return whole[: whole.index(header) + len(header)] if header in whole else ""

    def _cut(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """An answer without what the template writes behind the token that ends it, such as a line break."""
        special = self._special
        last = next((place for place in range(end - 1, start, -1) if ids[place] in special), end - 1)
        return start, last + 1

    @property
    def _special(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder
        return {*self.tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}

    def _compare(
        self,
        answers: Sequence[tuple[int, int]],
        messages: Sequence[Message],
        tools: Any,
        text: str,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
    ) -> None:
        """Raise TemplateFault where the marks leave out the end of an answer, so that a model would learn none."""
        numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            rendered = list(self._find_rendered(messages, tools, numbers, text, ids, offsets))
        except TemplateFault:  # then only the marks can tell
            return
        if list(answers) == rendered:
            return
        marked, found = (
            [self.tokenizer.decode(ids[start:end]) for start, end in spans] for spans in (answers, rendered)
        )
        raise TemplateFault(
            f"has other answers by the marks of the chat template, {shorten(marked)}, than by what it writes for them, "
            f"{shorten(found)}; correct the template, or set task.args.spans to marks or to prefixes"
        )


def _list_runs(marks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The begin and end of each run of marks.

    >>> list(_list_runs([0, 1, 1, 0, 1]))
    [(1, 3), (4, 5)]
    """
    start = None
    for place, mark in enumerate([*marks, 0]):
        if mark and start is None:
            start = place
        elif not mark and start is not None:
            yield start, place
            start = None
