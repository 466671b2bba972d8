"""Reads and checks the body of a request: each value must fit the kind of its column, and the limits."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import Field

from trainer_loop.data import images
from trainer_loop.data.columns import Column, Columns
from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.values import find_fault
from trainer_loop.data.wording import did_you_mean, enumerate_names, shorten
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.predictor import Predictor
from trainer_loop.service.limits import ServiceLimits

MOST_FAULTS = 20  # reported for one request
_DEEPEST = 32  # levels of nested lists and objects
_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"
_LONGEST_NAME = 100  # characters of a column name that are compared for a suggestion


@dataclass(frozen=True)
class Fault:
    """An error in a request."""

    place: Annotated[str, Field(description="body, rows, or a part of them, such as rows[3].text")]
    value: Annotated[str | None, Field(description="what stands there, in short")]
    message: Annotated[str, Field(description="what is wrong, and what is allowed")]


@dataclass(frozen=True)
class Faults:
    """The body of the answer to a refused request."""

    errors: Sequence[Fault]


class Refusal(Exception):
    """A request that is refused, with the status code of HTTP."""

    def __init__(self, status: int, faults: Sequence[Fault]):
        super().__init__(faults[0].message)
        self.status = status
        self.faults = list(faults)

    @classmethod
    def of(cls, status: int, place: str, value: Any, message: str) -> "Refusal":
        """Make a refusal with one fault. value: None if there is no value to show."""
        return cls(status, [Fault(place, None if value is None else shorten(value), message)])


class RowReader:
    """Reads requests for a model.

    Attributes:
        predictor: The model.
        limits: The limits of requests.
        columns: The columns that every row must have, by role, which is the task's name of a column.
    """

    def __init__(self, predictor: Predictor, limits: ServiceLimits):
        self.predictor = predictor
        self.limits = limits
        declared = Columns(predictor.task.columns, {}).without_targets().declared
        self.columns: dict[str, Column] = {role: declared[role] for role in predictor.reads}

    def read(self, body: bytes) -> list[dict[str, Any]]:
        """Return the rows of a request, by the task's columns. Raises Refusal with its faults."""
        rows = self._find_rows(_parse(body))
        valid: list[dict[str, Any]] = []
        faults: list[Fault] = []
        for number, row in enumerate(rows):
            try:
                valid.append(self._read_row(row, f"rows[{number}]"))
            except Refusal as refusal:
                faults += refusal.faults
            if len(faults) >= MOST_FAULTS:
                break
        if faults:
            raise Refusal(422, faults[:MOST_FAULTS])
        return valid

    def _find_rows(self, request: Any) -> list[Any]:
        if not isinstance(request, dict) or list(request) != ["rows"]:
            raise Refusal.of(422, "body", request, 'it must be {"rows": [...]}, and nothing else')
        rows = request["rows"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= self.limits.max_rows:
            value = f"{len(rows):,} rows" if isinstance(rows, list) else shorten(rows)
            raise Refusal(422, [Fault("rows", value, f"it must be a list of 1 to {self.limits.max_rows:,} rows")])
        return rows

    def _read_row(self, row: Any, place: str) -> dict[str, Any]:
        if isinstance(row, str):
            return self._read_text(row, place)
        if not isinstance(row, dict):
            raise Refusal.of(422, place, row, f"it must be an object with {self._named}, or a text")
        names = self.predictor.match_columns(row)
        unknown = [name for name, role in names.items() if role not in self.columns]
        faults = [
            Fault(place, shorten(name), f"the model reads {self._named}, and no such column{self._guess(name)}")
            for name in unknown[:MOST_FAULTS]
        ]
        faults += [
            Fault(f"{place}.{role}", None, f"it is missing: the model reads {self._named}")
            for role in self.columns
            if role not in names.values()
        ]
        known = {name: role for name, role in names.items() if role in self.columns}
        if len(set(known.values())) < len(known):
            faults.append(Fault(place, enumerate_names(list(known)), "two of them name the same column; leave one out"))
        values = {}
        for name, role in known.items():
            try:
                values[str(role)] = self._read_value(row[name], self.columns[str(role)], f"{place}.{name}")
            except Refusal as refusal:
                faults += refusal.faults
        if faults:
            raise Refusal(422, faults)
        return {role: values[role] for role in self.columns}

    def _read_text(self, text: str, place: str) -> dict[str, Any]:
        """Read a row that is a text, as `predict` does for a model with one column."""
        if len(self.columns) > 1:
            raise Refusal.of(422, place, text, f"it must be an object with {self._named}")
        ((role, column),) = self.columns.items()
        try:
            value = self.predictor.read_text(role, text)
        except UserError as error:
            raise Refusal.of(422, place, text, in_one_line(error)) from error
        return {role: self._read_value(value, column, place)}

    def _read_value(self, value: Any, column: Column, place: str) -> Any:
        if column.kind == "image":
            return self._read_image(value, place)
        if (fault_inside := self._find_fault_inside(value)) is not None:
            inner, message = fault_inside
            raise Refusal.of(422, f"{place}{inner}", None, message)
        if column.kind == "text" and not isinstance(value, str):
            raise Refusal.of(422, place, value, "it must be a text")
        if column.kind == "text" and not column.blank and (not value or value.isspace()):
            raise Refusal.of(422, place, value, "it is empty; leave the row out")
        if column.kind == "tools" and not isinstance(value, list):
            raise Refusal.of(422, place, value, "it must be a list of JSON schemas")
        if (fault := find_fault(value, column.kind, None)) is not None:
            raise Refusal.of(422, place, value, f"it {fault}")
        return value

    def _read_image(self, value: Any, place: str) -> bytes:
        """Return the bytes of a data URI. A path or an address would let clients read files of this machine."""
        if not isinstance(value, str) or not value.startswith(images.DATA_URI):
            allowed = "data:image/png;base64,iVBORw0K..."
            raise Refusal.of(422, place, value, f"it must be a data URI, such as {allowed}; no files are read here")
        try:
            content, _ = images.read_source(value)
            fault = images.explain_fault_of_strangers(content, max_pixels=self.limits.max_pixels)
        except ValueError as error:
            fault = str(error)
        if fault is not None:
            raise Refusal.of(422, place, value, f"it {fault}")
        return content

    def _find_fault_inside(self, value: Any) -> tuple[str, str] | None:
        """Return the place and the message of a fault inside a value of any kind, or None."""
        most_letters, most_elements = self.limits.max_text_length, self.limits.max_list_length
        parts: list[tuple[str, Any, int]] = [("", value, 0)]
        while parts:
            place, part, depth = parts.pop()
            if depth > _DEEPEST:
                return "", _TOO_DEEP
            if isinstance(part, str):
                if len(part) > most_letters:
                    return place, f"it has {len(part):,} characters; allowed: {most_letters:,}"
                if not is_encodable(part):
                    return place, "it holds half of a surrogate pair, which is no character"
            elif isinstance(part, float) and not math.isfinite(part):
                return place, "it is no finite number"
            elif isinstance(part, (list, dict)):
                if len(part) > most_elements:
                    return place, f"it has {len(part):,} elements; allowed: {most_elements:,}"
                keyed = part.items() if isinstance(part, dict) else enumerate(part)
                parts += [(f"{place}[{shorten(key)}]", one, depth + 1) for key, one in keyed]
                parts += [(place, key, depth) for key in part if isinstance(part, dict)]
        return None

    def _guess(self, name: str) -> str:
        trained_on = self.predictor.columns
        return did_you_mean(
            name[:_LONGEST_NAME], [*self.columns, *(trained_on.get(role, role) for role in self.columns)]
        )

    @property
    def _named(self) -> str:
        """The columns as text, by their names in the training data."""
        return enumerate_names([self.predictor.columns[role] for role in self.columns])


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Refusal.of(400, "body", None, f"byte {error.start:,} is not UTF-8") from error
    except RecursionError as error:
        raise Refusal.of(400, "body", None, _TOO_DEEP) from error
    except ValueError as error:
        raise Refusal.of(400, "body", None, f"it is no JSON: {in_one_line(error)}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
