"""Conversations as a chat template writes them, and which of their tokens are answers of the assistant.

A template marks the answers itself, between `{% generation %}` and `{% endgeneration %}`, or they are found by writing
the beginnings of the conversation: an answer is what the conversation up to it has more than the one before it, with
the header of an answer behind that.
"""

import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jinja2

from trainer_loop.data import conversations as conversations
from trainer_loop.data.conversations import Message, read_text
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line

Spans = Literal["auto", "marks", "prefixes"]

_PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Tokens must not depend on the day on which they are made.
_FIXED_DATE = (
    "{%- macro strftime_now(format) %}{% if format == '%Y-%m-%d' %}2024-07-26{% elif format == '%d %B %Y' %}"
    "26 July 2024{% else %}26 Jul 2024{% endif %}{% endmacro %}"
)
# What a template may raise: its own checks, and operations on messages that it did not expect.
_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


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
class _Written:
    """A conversation as text and tokens. offsets: the characters of each token."""

    messages: Sequence[Message]
    tools: Any
    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a tokenizer. spans: how answers are found; auto: by the marks of the template, if it has any."""

    tokenizer: Any
    spans: Spans = "auto"

    @classmethod
    def of(cls, tokenizer: Any, spans: Spans = "auto") -> "ChatTemplate":
        """The template of a tokenizer. Raises UserError if it has none."""
        if not tokenizer.chat_template:
            raise UserError(
                "model.chat_template: null: the tokenizer has none; set it to plain, or to a file with a template"
            )
        return cls(tokenizer, spans)

    @cached_property
    def has_marks(self) -> bool:
        """Whether the template marks the answers."""
        return bool(_MARK.search(self._template))

    @cached_property
    def _template(self) -> str:
        template = str(self.tokenizer.get_chat_template())
        return _FIXED_DATE + template if "strftime_now" in template else template

    @cached_property
    def _special(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder
        return {*self.tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}

    def find_ends(self) -> set[int] | None:
        """The tokens that end an answer: the tokenizer's own, and the one that the template writes.

        None: the template ends an answer with no token by which a model could stop.
        """
        own = self.tokenizer.eos_token_id
        ends = set() if own is None else {own}
        try:
            chat = replace(self, spans="prefixes").encode(_PROBE, None, only_last=True, compares=False)
        except TemplateFault:  # a template may take other conversations only
            return ends
        last = next(token for token, is_one in zip(chat.ids[::-1], chat.is_answer[::-1], strict=True) if is_one)
        return ends | {last} if last in self._special else None

    def write(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a whole conversation. Raises TemplateFault if the template refuses it."""
        return self._tokenise(self._render(messages, None))

    def encode(self, messages: Sequence[Message], tools: Any, *, only_last: bool, compares: bool) -> EncodedChat:
        """The tokens of a conversation; one that does not end with an answer gets the header of one.

        Args:
            messages: The conversation.
            tools: JSON schemas of functions, for the template; None: none.
            only_last: only the last answer counts.
            compares: the answers are compared with what the other way finds, and with what a model is asked with.

        Raises:
            TemplateFault: the template refuses the conversation, or its answers cannot be found.
        """
        if messages[-1]["role"] != "assistant":
            ids = self._tokenise(self._render(messages, tools, asks=True))
            return EncodedChat(ids, [False] * len(ids), len(ids))
        text = self._render(messages, tools)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        written = _Written(messages, tools, text, encoded["input_ids"], encoded["offset_mapping"])
        numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if self.spans == "marks" or (self.spans == "auto" and self.has_marks):
            answers = self._find_marked(written)
            if compares and self.spans == "auto":
                self._compare_ways(answers, numbers, written)
        else:
            answers = list(self._find_rendered(numbers[-1:] if only_last else numbers, written))
        if not answers:
            raise TemplateFault("has no token of an answer under the chat template of the tokenizer")
        if compares and self.spans == "auto":
            self._compare_header(answers[-1][0], written)
        is_answer = [False] * len(written.ids)
        for start, end in answers[-1:] if only_last else answers:
            is_answer[start:end] = [True] * (end - start)
        return EncodedChat(written.ids, is_answer, answers[-1][0])

    def _render(self, messages: Sequence[Message], tools: Any, *, asks: bool = False) -> str:
        """asks: the header of an answer stands at the end."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self._template, tokenize=False, add_generation_prompt=asks
            )
        except _FAULTS as error:
            raise TemplateFault(f"is refused by the chat template: {in_one_line(error, at_most=200)}") from error
        return text

    def _tokenise(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def _find_marked(self, written: _Written) -> list[tuple[int, int]]:
        try:
            marks = self.tokenizer.apply_chat_template(
                list(written.messages),
                tools=written.tools,
                chat_template=self._template,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )["assistant_masks"]
        except _FAULTS as error:
            raise TemplateFault(f"is refused by the chat template: {in_one_line(error, at_most=200)}") from error
        return [(start, self._find_last_special(written.ids, start, end) + 1) for start, end in _list_runs(marks)]

    def _find_rendered(self, numbers: Sequence[int], written: _Written) -> Iterator[tuple[int, int]]:
        """numbers: of the messages that are answers."""
        messages, text, offsets = written.messages, written.text, written.offsets
        for number in numbers:
            is_last = number + 1 == len(messages)
            whole = text if is_last else self._render(messages[: number + 1], written.tools)
            before = (
                self._render(messages[:number], written.tools, asks=True)
                if number
                else self._find_header(messages, whole)
            )
            inside = [place for place, (a, b) in enumerate(offsets) if a < len(whole) and b > max(len(before), a)]
            if not inside:
                continue
            last = self._find_end(messages[number], len(before), inside, written)
            known = whole[: offsets[last][1]]
            if not (text.startswith(before) and text.startswith(known)):
                remedy = "" if len(numbers) == 1 else ", or set task.args.train_on=last"
                raise TemplateFault(
                    f"has an answer, message {number + 1}, that the chat template writes otherwise where the "
                    f"conversation ends with it; mark answers in the template by {{% generation %}}{remedy}"
                )
            yield inside[0], last + 1

    def _find_header(self, messages: Sequence[Message], whole: str) -> str:
        """What stands before an answer that begins a conversation. whole: the text of that message."""
        first = messages[:1]
        header = self._render(first, None, asks=True).removeprefix(self._render(first, None))
        return whole[: whole.index(header) + len(header)] if header in whole else ""

    def _find_end(self, message: Message, start: int, inside: Sequence[int], written: _Written) -> int:
        """The number of the token that ends an answer: the first special one behind what was said.

        Behind it a template may write a line break, or the end of the whole conversation. start: of the answer, in
        characters. inside: the numbers of its tokens.
        """
        said = read_text(message.get("content")).strip()
        found = written.text.find(said, start) if said else -1
        if found < 0:
            return self._find_last_special(written.ids, inside[0], inside[-1] + 1)
        behind = [place for place in inside if written.offsets[place][0] >= found + len(said)]
        return next((place for place in behind if written.ids[place] in self._special), inside[-1])

    def _find_last_special(self, ids: Sequence[int], start: int, end: int) -> int:
        """The number of the last special token of a span, or of its last token."""
        return next((place for place in range(end - 1, start, -1) if ids[place] in self._special), end - 1)

    def _compare_ways(self, answers: Sequence[tuple[int, int]], numbers: Sequence[int], written: _Written) -> None:
        """Raise TemplateFault where the marks leave out the end of an answer, so that a model would learn none."""
        try:
            rendered = list(self._find_rendered(numbers, written))
        except TemplateFault:  # then only the marks can tell
            return
        if list(answers) == rendered:
            return
        marked, found = (
            [self.tokenizer.decode(written.ids[start:end]) for start, end in spans] for spans in (answers, rendered)
        )
        raise TemplateFault(
            f"has other answers by the marks of the chat template, {shorten(marked)}, than by what it writes for them, "
            f"{shorten(found)}; correct the template, or set task.args.spans to marks or to prefixes"
        )

    def _compare_header(self, start: int, written: _Written) -> None:
        """Raise TemplateFault where a model is asked with other tokens than those that stood before an answer."""
        messages = written.messages
        if len(messages) == 1:
            return
        asked = self._tokenise(self._render(messages[:-1], written.tools, asks=True))
        if asked == list(written.ids[:start]) or list(written.ids[: len(asked)]) == asked:
            return
        trained, own = (self.tokenizer.convert_ids_to_tokens(ids[-3:]) for ids in (written.ids[: start + 1], asked))
        raise TemplateFault(
            f"has an answer whose header ends in other tokens, {shorten(trained)}, than where the model is asked for "
            f"one, {shorten(own)}; end the header with a line break or a special token, or set task.args.spans to "
            "marks or to prefixes"
        )


def read_code_of_conversations() -> str:
    """A checksum of the code that makes tokens of conversations, for the keys of their cache."""
    code = [inspect.getsource(module) for module in (sys.modules[__name__], conversations)]
    return digest("".join(code).encode())


def _list_runs(marks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The begin and end of each run of marks.

    >>> list(_list_runs([0, 1, 1, 0, 1]))
    [(1, 3), (4, 5)]
    """
    for mark, run in itertools.groupby(range(len(marks)), key=marks.__getitem__):
        if mark:
            first, *others = run
            yield first, first + len(others) + 1
