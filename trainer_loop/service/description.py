"""The OpenAPI description of POST /predict: its request by the columns of the task, its answers and its errors."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer_loop.data.columns import Column
from trainer_loop.data.conversations import ROLES
from trainer_loop.service.limits import ServiceLimits
from trainer_loop.service.rows import Faults, RowReader

REFUSALS = {
    400: "the body is no JSON in UTF-8, or is nested too deeply",
    401: "the bearer token is missing or wrong",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the content type is not application/json",
    422: "a row or a value is not as the model reads it, or is too large",
    429: "too many requests wait; try again after a second",
    500: "a bug of the service; its log says more",
    503: "the answer took too long, or the service is stopping",
}
_TEXT = {"type": "string", "minLength": 1, "pattern": r"\S"}
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": list(ROLES)}, "content": _TEXT},
    "required": ["role", "content"],
}
_MESSAGES = {"type": "array", "items": _MESSAGE, "minItems": 1}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "text": _TEXT,
    "words": {"type": "array", "items": _TEXT, "minItems": 1},
    "choices": {"type": "array", "items": _TEXT, "minItems": 2},
    "image": {"type": "string", "pattern": "^data:image/(png|jpeg|webp|gif|bmp);base64,", "description": "a data URI"},
    "prompt": {"anyOf": [_TEXT, _MESSAGES], "description": "a text of the user, or a list of messages"},
    "answer": {"anyOf": [_TEXT, _MESSAGES], "description": "a text of the assistant, or a list of messages"},
    "tools": {"type": "array", "items": {"type": "object"}, "description": "JSON schemas of functions"},
}


def describe_request(reader: RowReader) -> dict[str, Any]:
    """Describe the request body. Its columns have the names of the training data."""
    columns, names, task, limits = reader.columns, reader.predictor.columns, reader.predictor.task, reader.limits
    row: dict[str, Any] = {
        "type": "object",
        "properties": {names[role]: _describe_column(column, limits) for role, column in columns.items()},
        "required": [names[role] for role in columns],
        "additionalProperties": False,
    }
    if [column.kind for column in columns.values()] == ["text"]:
        examples: Sequence[Mapping[str, Any]] = [dict.fromkeys(columns, task.example_texts[0])]
    else:
        examples = [row for row in task.example if columns.keys() <= row.keys()][:2]
    shown = [{names[role]: row[role] for role in columns} for row in examples]
    if len(columns) == 1:
        (column,) = columns.values()
        text = _describe_column(column, limits) if column.kind == "text" else _TEXT
        row = {"anyOf": [row, text | {"description": "as on the command line of predict"}]}
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row, "minItems": 1, "maxItems": limits.max_rows}},
        "required": ["rows"],
        "additionalProperties": False,
    }
    content = {"schema": schema, **({"example": {"rows": shown}} if shown else {})}
    return {"required": True, "content": {"application/json": content}}


def describe_answers(predicted: Mapping[str, str]) -> dict[int | str, dict[str, Any]]:
    """Describe the answer and the errors. predicted: the meaning of each predicted column."""
    row = {"type": "object", "properties": {name: {"description": meaning} for name, meaning in predicted.items()}}
    answer = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": row}},
        "required": ["predictions"],
    }
    description = "a prediction for each row, in their order"
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": description, "content": {"application/json": {"schema": answer}}}
    }
    return answers | {status: {"description": meaning, "model": Faults} for status, meaning in REFUSALS.items()}


def _describe_column(column: Column, limits: ServiceLimits) -> dict[str, Any]:
    if column.kind == "text":
        least = {} if column.blank else _TEXT
        return {"type": "string", "maxLength": limits.max_text_length, **least}
    assert column.kind in _SCHEMAS, f"no task of the package reads a column of the kind {column.kind}"
    schema = _SCHEMAS[column.kind]
    return schema | ({"maxItems": limits.max_list_length} if schema.get("type") == "array" else {})
