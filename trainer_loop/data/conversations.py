"""Conversations: what is wrong with one, and the form that chat templates read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.wording import enumerate_names, shorten
from trainer_loop.errors import UserError
from trainer_loop.runtime.plain_json import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")

_SPELLED = re.compile(r"\s*\[\s*\{\s*\"")
Message = dict[str, Any]
# The columns of answers, and whose a text in one of them is: a conversation to predict may be a text of the user.
_ANSWERS = {"chosen": "assistant", "rejected": "assistant", "chosen_messages": "user", "rejected_messages": "user"}


def read_messages(value: Any, *, role: str) -> list[Message]:
    """The messages of a value; a text is one message of this role.

    A table gives all rows the same fields, so those that a row does not have are null there. They are left out.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [_without_nulls(message) for message in value]


def read_spelled(text: str) -> str | list[Message]:
    """A text of a user, or the messages of which it is the JSON.

    Raises UserError where it begins as messages do and is none.

    >>> read_spelled("[sic]"), read_spelled('[{"role": "user", "content": "Hi"}]')
    ('[sic]', [{'role': 'user', 'content': 'Hi'}])
    """
    if not _SPELLED.match(text):
        return text
    try:
        return list(parse_json(text))
    except ValueError as error:
        raise UserError(
            f"it begins like a list of messages and is no JSON ({error}); names and texts stand in double quotes"
        ) from error


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """The JSON schemas of a value of the kind `tools`; None if there are none."""
    tools = json.loads(value) if isinstance(value, str) and value else value
    return [_without_nulls(tool) for tool in tools] if tools else None


def find_fault_of_messages(value: Any, kind: Literal["conversation", "prompt", "answer"]) -> str | None:
    """What is wrong with a value of this kind, as the rest of a sentence; None: nothing."""
    if isinstance(value, str) and kind != "conversation":
        return _find_fault_of_content(value)
    if not isinstance(value, (list, tuple)):
        return f'holds no list of messages, {{"role": ..., "content": ...}}, but {shorten(value)}'
    if not value:
        return "has no messages"
    for number, message in enumerate(value, start=1):
        if (fault := _find_fault_of_message(message)) is not None:
            return f"has a message, number {number} of {len(value)}, that {fault}"
    last = value[-1]["role"]
    others = [message["role"] for message in value if message["role"] not in ("assistant", "tool")]
    if kind == "answer" and others:
        return f"has a message of the {others[0]}, which belongs to the prompt; name a column of answers alone"
    if kind != "prompt" and last != "assistant":
        return f"ends in a message of the {last}, not of the assistant,"
    return None


def read_text(content: Any) -> str:
    """The text of a message: its content, or the texts of its parts, one after the other."""
    if isinstance(content, (list, tuple)):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def read_pairs(rows: Mapping[str, Sequence[Any]]) -> list[list[list[Message]]]:
    """The two conversations of each row, the chosen one first; one of a row without answers, or with one."""
    answers = [own for own in _ANSWERS if own in rows]
    prompts: list[list[Message]] = [[]] * len(next(iter(rows.values())))
    if "prompt" in rows:
        prompts = [read_messages(prompt, role="user") for prompt in rows["prompt"]]
    return [
        [prompt + read_messages(rows[own][number], role=_ANSWERS[own]) for own in answers] or [prompt]
        for number, prompt in enumerate(prompts)
    ]


def find_fault_of_pair(conversations: Sequence[Sequence[Message]]) -> str | None:
    """What a template accepts all the same: answers to nothing, or to unlike prompts."""
    if all(message["role"] == "assistant" for message in conversations[0]):
        return "has an answer and no prompt; put it before the answer"
    if len({json.dumps(messages[:-1], sort_keys=True) for messages in conversations}) > 1:
        return "has two conversations that differ before their last messages; both answers need the same prompt"
    return None


def lacks_answer(value: Any) -> bool:
    """Whether a conversation ends before the assistant answers."""
    last = value[-1] if isinstance(value, (list, tuple)) and value else None
    role = last.get("role") if isinstance(last, Mapping) else None
    return role in ROLES and role != "assistant"


def find_fault_of_tools(value: Any) -> str | None:
    """What is wrong with a value of the kind `tools`, as the rest of a sentence; None: nothing."""
    try:
        tools = json.loads(value) if isinstance(value, str) and value else value
    except ValueError:
        return f"holds a text that is no JSON, {shorten(value)}"
    if tools and not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        return f"holds no list of JSON schemas but {shorten(value)}"
    return None


def _find_fault_of_message(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f'is {shorten(message)}; it must be {{"role": ..., "content": ...}}'
    role, content = message.get("role"), message.get("content")
    if role is None:
        return f"has no role; it has {enumerate_names([str(name) for name in message])}"
    if role not in ROLES:
        return f"has the role {shorten(role)}; allowed: {', '.join(ROLES)}"
    if not content and role == "assistant" and message.get("tool_calls"):
        return None
    if content is None and "content" not in message:
        return f"has no content; it has {enumerate_names([str(name) for name in message])}"
    return _find_fault_of_content(content)


def _find_fault_of_content(content: Any) -> str | None:
    """content: a text, or parts of one, which some templates read."""
    if not content or (isinstance(content, str) and content.isspace()):
        return "is empty" if content is None or isinstance(content, str) else "has no parts"
    if isinstance(content, (list, tuple)):
        is_right = all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
        return None if is_right else f'has parts that are not {{"type": ..., ...}}, {shorten(content)}'
    if not isinstance(content, str):
        return f"has the content {shorten(content)}, which is no text"
    return None if is_encodable(content) else "holds half of a surrogate pair, which is no character,"


def _without_nulls(value: Any) -> Any:
    """A value without the entries of its dicts, at any depth, that are null."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, (list, tuple)) else value
