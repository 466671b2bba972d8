"""Checks conversations, and converts them to the form that chat templates read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.wording import enumerate_names, shorten
from trainer_loop.errors import UserError
from trainer_loop.runtime.plain_json import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")

_MESSAGES_AS_JSON = re.compile(r"\s*\[\s*\{\s*\"")
Message = dict[str, Any]
# Columns of answers -> role of a plain text in them. Rows to predict may have a text of the user as a conversation.
_ANSWERS = {"chosen": "assistant", "rejected": "assistant", "chosen_messages": "user", "rejected_messages": "user"}


def read_messages(value: Any, *, role: str) -> list[Message]:
    """Return the messages of a value; a text becomes one message of `role`.

    Null fields are removed: a table has the same fields in all rows, with null where a row lacks one.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [_without_nulls(message) for message in value]


def read_spelled(text: str) -> str | list[Message]:
    """Parse a text that is a JSON list of messages; return other texts unchanged.

    Raises UserError if it starts like a list of messages and is not valid JSON.

    >>> read_spelled("[sic]"), read_spelled('[{"role": "user", "content": "Hi"}]')
    ('[sic]', [{'role': 'user', 'content': 'Hi'}])
    """
    if not _MESSAGES_AS_JSON.match(text):
        return text
    try:
        return list(parse_json(text))
    except ValueError as error:
        raise UserError(
            f"it begins like a list of messages and is no JSON ({error}); names and texts stand in double quotes"
        ) from error


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the JSON schemas of a value of kind `tools`; None if there are none."""
    tools = json.loads(value) if isinstance(value, str) and value else value
    return [_without_nulls(tool) for tool in tools] if tools else None


def find_fault_of_messages(value: Any, kind: Literal["conversation", "prompt", "answer"]) -> str | None:
    """Return the fault of a value of this kind, as the end of a sentence; None if it has none."""
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
    other_roles = [message["role"] for message in value if message["role"] not in ("assistant", "tool")]
    if kind == "answer" and other_roles:
        return f"has a message of the {other_roles[0]}, which belongs to the prompt; name a column of answers alone"
    if kind != "prompt" and last != "assistant":
        return f"ends in a message of the {last}, not of the assistant,"
    return None


def read_text(content: Any) -> str:
    """Return the text of a message: its content, or the concatenated texts of its parts."""
    if isinstance(content, (list, tuple)):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def read_pairs(rows: Mapping[str, Sequence[Any]]) -> list[list[list[Message]]]:
    """Return the two conversations of each row, the chosen one first; only one if the row has at most one answer."""
    answers = [column for column in _ANSWERS if column in rows]
    prompts: list[list[Message]] = [[]] * len(next(iter(rows.values())))
    if "prompt" in rows:
        prompts = [read_messages(prompt, role="user") for prompt in rows["prompt"]]
    return [
        [prompt + read_messages(rows[column][number], role=_ANSWERS[column]) for column in answers] or [prompt]
        for number, prompt in enumerate(prompts)
    ]


def find_fault_of_pair(conversations: Sequence[Sequence[Message]]) -> str | None:
    """Return a fault that templates accept: an answer without a prompt, or two different prompts."""
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
    """Return the fault of a value of kind `tools`, as the end of a sentence; None if it has none."""
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
    """Return the fault of a text, or of a list of parts, which some templates read."""
    if not content or (isinstance(content, str) and content.isspace()):
        return "is empty" if content is None or isinstance(content, str) else "has no parts"
    if isinstance(content, (list, tuple)):
        is_valid = all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
        return None if is_valid else f'has parts that are not {{"type": ..., ...}}, {shorten(content)}'
    if not isinstance(content, str):
        return f"has the content {shorten(content)}, which is no text"
    return None if is_encodable(content) else "holds half of a surrogate pair, which is no character,"


def _without_nulls(value: Any) -> Any:
    """Remove null entries of dicts at any depth."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, (list, tuple)) else value
