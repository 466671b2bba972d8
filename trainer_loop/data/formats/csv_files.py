"""Delimited files (.csv, .tsv) with a header. Each field is a text; an empty field is null."""

import contextlib
import csv
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from trainer_loop.data.shards import Batch, Item, Mark, Shard, Values, gather
from trainer_loop.data.text_format import Lines, TextFormat
from trainer_loop.data.wording import enumerate_names, enumerate_some, shorten
from trainer_loop.errors import UserError

_LONGEST_FIELD = 2**31 - 1  # characters; the default of the csv module, 131,072, is too low for documents
_DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MAX_CLASSES = 100  # a column with at most this many distinct values holds classes
_MIN_LINES = 20  # that are needed to know the classes of a column
_LINES_AFTER = 100_000  # that are read after lines that quotes join
_MAX_CHECKS = 3
_MAX_EXPLAINED = 5  # rows with a wrong number of fields whose message is written in full

Record = list[str]  # the fields of a row


def open_delimited(path: str, *, columns: Collection[str] | None, text_format: TextFormat) -> Shard:
    """Open a .csv or .tsv file. `columns` are those that are read; None: all."""

    def open_records(mark: Mark | None = None) -> Records:
        return Records(path, text_format, mark, texts=columns or ())

    def read(mark: Mark | None) -> Iterator[Batch]:
        records = open_records(mark)
        wanted = {name: place for place, name in enumerate(records.header) if columns is None or name in columns}

        def make_rows(group: Sequence[Record]) -> list[Values]:
            return [{name: record[place] or None for name, place in wanted.items()} for record in group]

        return gather(records, make_rows, nothing=[""] * len(records.header), names=("row", "line", "offset"))

    return Shard(
        path, "row", read, names=lambda: open_records().header, has_fields=True, no_rows="has a header and no rows"
    )


def _fill_names(header: Sequence[str]) -> list[str]:
    """Return the names with new ones for columns without a name, such as the index that pandas writes."""
    names: list[str] = []
    for position, name in enumerate(header, start=1):
        while not name or (name != header[position - 1] and name in header):
            name = f"column_{position}" if not name else f"{name}_"
        names.append(name)
    return names


class Records:
    """Iterates over the records of a .csv or .tsv file with a header.

    Args:
        path: Path of the file.
        text_format: Delimiter, quoting and encoding.
        mark: Start after this `row`, `line` and `offset`; None: at the first record.
        texts: Columns of texts; a file may have one of them as its only column.

    Raises:
        UserError: The header is not valid, the quoting is broken, or quotes join lines that look like separate records.
    """

    def __init__(self, path: str, text_format: TextFormat, mark: Mark | None, *, texts: Collection[str]):
        self.path = path
        self.row = 0 if mark is None else mark["row"]  # count of records that were read
        self.format = text_format
        self.delimiter = text_format.delimiter_of(path)
        self.header, header_end = self._read_header(texts)
        self._lines = header_end if mark is None else self._open_lines(mark)
        self._record_lines: list[str] = []  # lines of the current record
        self._checks_left = _MAX_CHECKS if text_format.quoting == "auto" and len(self.header) > 1 else 0
        self._num_uneven = 0  # records with a wrong number of fields

    @property
    def line(self) -> int:
        return self._lines.number

    def __iter__(self) -> Iterator[Item[Record]]:
        lines, record_lines, num_fields = self._lines, self._record_lines, len(self.header)
        first_line = lines.number + 1
        with long_fields():
            try:
                for record in self._read(self._track_lines()):
                    if record:  # a blank line is not a row
                        self.row += 1
                        if len(record_lines) > 1 and self._checks_left:
                            self._refuse_joined_records(first_line)
                        is_even = len(record) == num_fields
                        source = record if is_even else self._explain_fields(record, first_line)
                        yield source, (self.row, lines.number, lines.offset)
                    first_line = lines.number + 1
                    record_lines.clear()
            except csv.Error as error:
                raise UserError(
                    f"{self.path} row {self.row + 1}, which begins on line {first_line}: the quoting breaks by line "
                    f"{self.line} ({error}); close the quoted text, and write a quote inside it twice "
                    f'(""){self._suggest_no_quotes()}'
                ) from error

    def _explain_fields(self, record: Record, first_line: int) -> UserError:
        """Return the error of the current record, which has a wrong number of fields."""
        self._num_uneven += 1
        if self._num_uneven > _MAX_EXPLAINED:
            return UserError("")  # it is only counted, because each explanation reads the file
        names = _DELIMITER_NAMES.get(self.delimiter, f"the character {self.delimiter!r}")
        if self.format.quoting == "none":
            remedy = f"with data.files.quoting=none no field may contain {names}"
        else:
            remedy = f"quote texts that contain {names} or line breaks" + self._suggest_no_quotes()
        return UserError(
            f"{self.path} row {self.row} (line {first_line}) has {len(record)} fields; the header has "
            f"{len(self.header)} ({enumerate_names(self.header, at_most=5)}): {remedy}"
        )

    def _suggest_no_quotes(self) -> str:
        """Return advice to turn quoting off if all lines then have as many fields as the header."""
        lines = self._split_plainly(until=self.line + _LINES_AFTER)
        if len(self.header) == 1 or any(len(fields) != len(self.header) for _, fields in lines):
            return ""
        return "; or, as quotes seem to be ordinary characters in this file, set data.files.quoting=none"

    def _read_header(self, texts: Collection[str]) -> tuple[list[str], Lines]:
        lines = self._open_lines()
        try:
            with long_fields():
                header = next(self._read(lines), [])
        except csv.Error as error:
            raise UserError(
                f"{self.path} line 1: the quoting breaks by line {lines.number} ({error}); close the quoted name"
            ) from error
        self._check_header(header, texts)
        return _fill_names(header), lines

    def _check_header(self, header: Sequence[str], texts: Collection[str]) -> None:
        path = self.path
        if not header:
            raise UserError(f"{path} is empty, or its first line is; it must begin with the names of its columns")
        repeated = sorted(name for name, count in Counter(header).items() if name and count > 1)
        if repeated:
            raise UserError(
                f"{path} line 1 names these columns more than once: {enumerate_some(repeated)}; rename them"
            )
        if len(header) > 1 or header[0] in texts:
            return
        for other, name in _DELIMITER_NAMES.items():
            if other in header[0] and other != self.delimiter:
                typed = "tab" if other == "\t" else f"'{other}'"
                raise UserError(
                    f"{path} line 1 has the one column {shorten(header[0])}: its fields seem to be separated by "
                    f"{name}; set data.files.delimiter={typed} (it holds for all files of a run; without it a "
                    ".csv file has commas and a .tsv file tabs)"
                )

    def _refuse_joined_records(self, first_line: int) -> None:
        """Raise UserError if quotes join lines into one record that look like separate records."""
        if any(line.count(self.delimiter) != len(self.header) - 1 for line in self._record_lines):
            return
        self._checks_left -= 1  # each check reads the file; after a few checks the quotes are trusted
        evidence = _Evidence(self.delimiter, len(self.header))
        for number, fields in self._split_plainly(until=self.line + _LINES_AFTER):
            if len(fields) != len(self.header):
                self._checks_left = 0  # the file cannot be read without quoting
                return
            evidence.add(fields, is_joined=first_line <= number <= self.line)
        if evidence.are_records():
            raise UserError(
                f"{self.path} row {self.row}: quotes join lines {first_line} to {self.line} into one row, and each of "
                "them looks like a row of its own: set data.files.quoting=none where quotes are ordinary characters, "
                "or data.files.quoting=double where they are not"
            )

    def _split_plainly(self, *, until: int) -> Iterator[tuple[int, list[str]]]:
        """Yield number and fields of each line after the header, with quotes as ordinary characters."""
        for number, line in enumerate(self._open_lines(), start=1):
            if number > until:
                return
            text = line.rstrip("\r\n")
            if number > 1 and text:
                yield number, text.split(self.delimiter)

    def _open_lines(self, mark: Mark | None = None) -> Lines:
        return Lines(self.path, self.format.encoding, mark, any_break=True)

    def _track_lines(self) -> Iterator[str]:
        """Yield lines and store them. The csv module takes no line ahead, so they are those of the current record."""
        for line in self._lines:
            self._record_lines.append(line)
            yield line

    def _read(self, lines: Iterator[str] | Lines) -> Iterator[Record]:
        if self.format.quoting == "none":
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, strict=True)


class _Evidence:
    """Decides whether lines that quotes join are records: in each column they must be like the other lines.

    Only columns without spaces are compared, such as labels and numbers, because any part of a text looks like a text.
    """

    def __init__(self, delimiter: str, num_columns: int):
        self._has_tabs = delimiter == "\t"
        self._joined: list[list[str]] = []
        self._num_other_lines = 0
        self._values: list[set[str]] = [set() for _ in range(num_columns)]  # by column, some values of the other lines
        self._are_words = [True] * num_columns
        self._are_numbers = [True] * num_columns
        self._has_double_quotes = False

    def add(self, fields: list[str], *, is_joined: bool) -> None:
        self._has_double_quotes |= any('""' in field for field in fields)
        if is_joined:
            self._joined.append(fields)
            return
        self._num_other_lines += 1
        for column, field in enumerate(fields):
            self._are_words[column] &= _is_word(field)
            self._are_numbers[column] &= _is_number(field)
            if len(self._values[column]) <= _MAX_CLASSES:
                self._values[column].add(field)

    def are_records(self) -> bool:
        quoted = next((column for column, field in enumerate(self._joined[0]) if field.startswith('"')), None)
        word_columns = [column for column, is_word in enumerate(self._are_words) if is_word and column != quoted]
        if self._num_other_lines and word_columns:
            return all(self._fits(column) for column in word_columns)
        # Without such columns: texts rarely have tabs, and `""` shows that the file uses quoting.
        return self._has_tabs and not self._has_double_quotes

    def _fits(self, column: int) -> bool:
        joined, values = {fields[column] for fields in self._joined}, self._values[column]
        if self._are_numbers[column]:
            return all(map(_is_number, joined))
        are_classes = len(values) <= _MAX_CLASSES and (not self._has_tabs or self._num_other_lines >= _MIN_LINES)
        return joined <= values if are_classes else all(map(_is_word, joined))


def _is_word(field: str) -> bool:
    return not any(sign in field for sign in ' "')


def _is_number(field: str) -> bool:
    return not field or _NUMBER.fullmatch(field) is not None


@contextlib.contextmanager
def long_fields() -> Iterator[None]:
    """Raise the field limit of the csv module. The limit is global: the last reader restores it."""
    global _num_readers, _limit_before
    with _limit_lock:
        if _num_readers == 0:
            _limit_before = csv.field_size_limit(_LONGEST_FIELD)
        _num_readers += 1
    try:
        yield
    finally:
        with _limit_lock:
            _num_readers -= 1
            if _num_readers == 0:
                csv.field_size_limit(_limit_before)


_limit_lock = threading.Lock()
_num_readers = 0
_limit_before = 0
