"""Tokenises conversations with a chat template, and finds the tokens that are answers of the assistant.

Answers are found in one of two ways. A template may mark them by `{% generation %}` and `{% endgeneration %}`. Else
prefixes of the conversation are rendered: an answer is the difference between the conversation with it and the
conversation before it, with the header of an answer.
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
# Some templates write the current date. Tokens must not depend on it.
_FIXED_DATE = (
    "{%- macro strftime_now(format) %}{% if format == '%Y-%m-%d' %}2024-07-26{% elif format == '%d %B %Y' %}"
    "26 July 2024{% else %}26 Jul 2024{% endif %}{% endmacro %}"
)
# Errors of a template: its own checks, and operations on messages that it does not expect.
_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class TemplateFault(Exception):
    """The reason why a conversation cannot be used with a template, as the rest of a sentence."""


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a conversation.

    Attributes:
        ids: Token ids, `[T]`.
        is_answer: True for the tokens of an answer and for the token that ends it, `[T]`.
        prompt_length: Number of tokens before the last answer.
    """

    ids: list[int]
    is_answer: list[bool]
    prompt_length: int


@dataclass(frozen=True)
class _RenderedChat:
    """A conversation as text and tokens. `offsets` are the start and end of each token in characters."""

    messages: Sequence[Message]
    tools: Any
    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer. `spans` says how answers are found, see `Chat`."""

    tokenizer: Any
    spans: Spans = "auto"

    @classmethod
    def of(cls, tokenizer: Any, spans: Spans = "auto") -> "ChatTemplate":
        """Return the template of a tokenizer. Raises UserError if it has none."""
        if not tokenizer.chat_template:
            raise UserError(
                "model.chat_template: null: the tokenizer has none; set it to plain, or to a file with a template"
            )
        return cls(tokenizer, spans)

    @cached_property
    def has_marks(self) -> bool:
        """Whether the template marks answers."""
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
        """Return the tokens that end an answer: the tokenizer's end token, and the token that the template writes.

        Returns None if the template ends an answer without a special token, so that the model could not stop.
        """
        eos = self.tokenizer.eos_token_id
        ends = set() if eos is None else {eos}
        try:
            chat = replace(self, spans="prefixes").encode(_PROBE, None, only_last=True, compares=False)
        except TemplateFault:  # the template may only accept other conversations
            return ends
        last = next(token for token, is_one in zip(chat.ids[::-1], chat.is_answer[::-1], strict=True) if is_one)
        return ends | {last} if last in self._special else None

    def write(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a whole conversation. Raises TemplateFault if the template refuses it."""
        return self._tokenise(self._render(messages, None))

    def encode(self, messages: Sequence[Message], tools: Any, *, only_last: bool, compares: bool) -> EncodedChat:
        """Tokenise a conversation. If it does not end with an answer, the header of an answer is appended.

        Args:
            messages: The conversation.
            tools: JSON schemas of functions, for the template; None: none.
            only_last: Mark only the last answer.
            compares: Compare marked answers with those found by prefixes, and the header of the answer with the one
                that the template adds for generation.

        Raises:
            TemplateFault: The template refuses the conversation, or its answers cannot be found.
        """
        if messages[-1]["role"] != "assistant":
            ids = self._tokenise(self._render(messages, tools, adds_header=True))
            return EncodedChat(ids, [False] * len(ids), len(ids))
        text = self._render(messages, tools)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        chat = _RenderedChat(messages, tools, text, encoded["input_ids"], encoded["offset_mapping"])
        numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if self.spans == "marks" or (self.spans == "auto" and self.has_marks):
            answers = self._find_by_marks(chat)
            if compares and self.spans == "auto":
                self._compare_ways(answers, numbers, chat)
        else:
            answers = list(self._find_by_prefixes(numbers[-1:] if only_last else numbers, chat))
        if not answers:
            raise TemplateFault("has no token of an answer under the chat template of the tokenizer")
        if compares and self.spans == "auto":
            self._compare_header(answers[-1][0], chat)
        is_answer = [False] * len(chat.ids)
        for start, end in answers[-1:] if only_last else answers:
            is_answer[start:end] = [True] * (end - start)
        return EncodedChat(chat.ids, is_answer, answers[-1][0])

    def _render(self, messages: Sequence[Message], tools: Any, *, adds_header: bool = False) -> str:
        """Render a conversation as text. With `adds_header`, append the header of an answer."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=adds_header,
            )
        except _FAULTS as error:
            raise TemplateFault(f"is refused by the chat template: {in_one_line(error, at_most=200)}") from error
        return text

    def _tokenise(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def _find_by_marks(self, chat: _RenderedChat) -> list[tuple[int, int]]:
        try:
            marks = self.tokenizer.apply_chat_template(
                list(chat.messages),
                tools=chat.tools,
                chat_template=self._template,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )["assistant_masks"]
        except _FAULTS as error:
            raise TemplateFault(f"is refused by the chat template: {in_one_line(error, at_most=200)}") from error
        return [(start, self._find_last_special(chat.ids, start, end) + 1) for start, end in _list_runs(marks)]

    def _find_by_prefixes(self, numbers: Sequence[int], chat: _RenderedChat) -> Iterator[tuple[int, int]]:
        """Yield the span of tokens of each answer. numbers: positions of the answers among the messages."""
        messages, text, offsets = chat.messages, chat.text, chat.offsets
        for number in numbers:
            is_last = number + 1 == len(messages)
            whole = text if is_last else self._render(messages[: number + 1], chat.tools)
            before = (
                self._render(messages[:number], chat.tools, adds_header=True)
                if number
                else self._find_header(messages, whole)
            )
            inside = [place for place, (a, b) in enumerate(offsets) if a < len(whole) and b > max(len(before), a)]
            if not inside:
                continue
            last = self._find_end(messages[number], len(before), inside, chat)
            through_answer = whole[: offsets[last][1]]
            if not (text.startswith(before) and text.startswith(through_answer)):
                remedy = "" if len(numbers) == 1 else ", or set task.args.train_on=last"
                raise TemplateFault(
                    f"has an answer, message {number + 1}, that the chat template writes otherwise where the "
                    f"conversation ends with it; mark answers in the template by {{% generation %}}{remedy}"
                )
            yield inside[0], last + 1

    def _find_header(self, messages: Sequence[Message], whole: str) -> str:
        """Return the text before an answer that starts a conversation. whole: the rendered first message."""
        first = messages[:1]
        header = self._render(first, None, adds_header=True).removeprefix(self._render(first, None))
        return whole[: whole.index(header) + len(header)] if header in whole else ""

    def _find_end(self, message: Message, start: int, inside: Sequence[int], chat: _RenderedChat) -> int:
        """Return the position of the token that ends an answer: the first special token after its content.

        After it a template may write a line break, or the end of the whole conversation.

        Args:
            start: Start of the answer in characters.
            inside: Positions of the tokens of the answer.
        """
        content = read_text(message.get("content")).strip()
        content_start = chat.text.find(content, start) if content else -1
        if content_start < 0:
            return self._find_last_special(chat.ids, inside[0], inside[-1] + 1)
        after = [place for place in inside if chat.offsets[place][0] >= content_start + len(content)]
        return next((place for place in after if chat.ids[place] in self._special), inside[-1])

    def _find_last_special(self, ids: Sequence[int], start: int, end: int) -> int:
        """Return the position of the last special token of a span, or of its last token."""
        return next((place for place in range(end - 1, start, -1) if ids[place] in self._special), end - 1)

    def _compare_ways(self, answers: Sequence[tuple[int, int]], numbers: Sequence[int], chat: _RenderedChat) -> None:
        """Raise TemplateFault if the marks leave out the end of an answer, so that a model would not learn to stop."""
        try:
            by_prefixes = list(self._find_by_prefixes(numbers, chat))
        except TemplateFault:  # prefixes cannot be used, so there is nothing to compare
            return
        if list(answers) == by_prefixes:
            return
        marked_texts, prefix_texts = (
            [self.tokenizer.decode(chat.ids[start:end]) for start, end in spans] for spans in (answers, by_prefixes)
        )
        raise TemplateFault(
            f"has other answers by the marks of the chat template, {shorten(marked_texts)}, than by what it writes for "
            f"them, {shorten(prefix_texts)}; correct the template, or set task.args.spans to marks or to prefixes"
        )

    def _compare_header(self, start: int, chat: _RenderedChat) -> None:
        """Raise TemplateFault if the prompt for generation differs from the tokens before the answer in training."""
        messages = chat.messages
        if len(messages) == 1:
            return
        prompt = self._tokenise(self._render(messages[:-1], chat.tools, adds_header=True))
        if prompt == list(chat.ids[:start]) or list(chat.ids[: len(prompt)]) == prompt:
            return
        trained, generated = (self.tokenizer.convert_ids_to_tokens(ids[-3:]) for ids in (chat.ids[: start + 1], prompt))
        raise TemplateFault(
            f"has an answer whose header ends in other tokens, {shorten(trained)}, than where the model is asked for "
            f"one, {shorten(generated)}; end the header with a line break or a special token, or set task.args.spans "
            "to marks or to prefixes"
        )


def read_code_of_conversations() -> str:
    """Return a checksum of the code that tokenises conversations, for the key of the token cache."""
    code = [inspect.getsource(module) for module in (sys.modules[__name__], conversations)]
    return digest("".join(code).encode())


def _list_runs(marks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each run of marks.

    >>> list(_list_runs([0, 1, 1, 0, 1]))
    [(1, 3), (4, 5)]
    """
    for mark, run in itertools.groupby(range(len(marks)), key=marks.__getitem__):
        if mark:
            first, *rest = run
            yield first, first + len(rest) + 1
