"""`python -m trainer_loop.predict model=runs/imdb text="..."`: predicts new rows with an exported model.

For a single text the command prints the prediction, such as a label and its probability (a causal LM: the
continuation). For a file it writes the same rows in the same order, with the predictions as new columns (a causal LM:
loss and perplexity of each text, and with max_new_tokens= the continuation).
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_loop.cli.arguments import find_model
from trainer_loop.cli.command import run_command
from trainer_loop.cli.predict_arguments import USAGE, Request, read_request
from trainer_loop.data.wording import did_you_mean
from trainer_loop.errors import printable, refuse
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.streams import SafeStream, drop_unwritten, put_out

if TYPE_CHECKING:  # importing them takes seconds
    from trainer_loop.predictor import Predictor
    from trainer_loop.record.export import ExportRecord

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # control characters, which a terminal would interpret


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(argv, f"{USAGE}\n", lambda arguments: _predict(read_request(arguments)), prints_result=True)


def _predict(request: Request) -> None:
    model_dir = find_model(request.model)
    with importing_torch():  # takes seconds
        quieten_libraries()
        from trainer_loop.predictor import check_writes, find_task_of, read_record

    record = read_record(model_dir)
    if request.file is not None:
        _predict_file(request.file, request, model_dir, record)
    else:
        refuse(check_writes(find_task_of(model_dir, record), request.generation))
        _print_one(load_predictor(model_dir, request), request)


def load_predictor(model_dir: Path, request: Request) -> "Predictor":
    """Load the model, with the generation options of the request."""
    from trainer_loop.predictor import Predictor

    predictor = Predictor.load(model_dir, trust_remote_code=request.trust_remote_code)
    predictor.use_generation(request.generation)
    return predictor


def _predict_file(file: str, request: Request, model_dir: Path, record: "ExportRecord | None") -> None:
    """Predict a file. The file is read and checked before the model loads."""
    from trainer_loop.cli.predict_files import predict_file, prepare_file

    job = prepare_file(file, request, model_dir, record)
    console = SafeStream(sys.stdout)  # the result is the file
    for line in predict_file(load_predictor(model_dir, request), job):
        print(line, file=console, flush=True)
    if console.fault is not None:
        print(f"warning: standard output cannot be written: {console.fault}", file=SafeStream(sys.stderr))
        drop_unwritten(sys.stdout)


def _print_one(predictor: "Predictor", request: Request) -> None:
    row = _name_columns(request.row, predictor)
    if predictor.task.continues:
        text = predictor.generate(row["text"])
        put_out(_CONTROL.sub(lambda match: repr(match.group())[1:-1], text) + "\n")
        return
    (prediction,) = predictor.predict(*([value] for value in row.values()))
    put_out(" ".join(f"{name}={_show(value)}" for name, value in prediction.items()) + "\n")


def _name_columns(given: Mapping[str, str], predictor: "Predictor") -> dict[str, str]:
    """Return the row with the task's column names, in the task's order; see `Predictor.match_columns`."""
    reads = predictor.reads
    matches = predictor.match_columns(given)
    spelled = [_spell_names(own, predictor.columns[own]) for own in reads]
    expected = f"this model reads {', '.join(spelled)}"
    known = [*reads, *(predictor.columns[own] for own in reads)]
    problems = [
        f"{name}= is given, and {expected}{did_you_mean(name, known)}"
        for name, own in matches.items()
        if own not in reads
    ]
    problems += [f'{own}= is missing: {expected}; add {own}="..."' for own in reads if own not in matches.values()]
    problems += [
        f"{' and '.join(f'{name}=' for name in names)} name one column; leave one out"
        for own in reads
        if len(names := [name for name in given if matches[name] == own]) > 1
    ]
    refuse(problems)
    values = {matches[name]: value for name, value in given.items()}
    return {own: values[own] for own in reads}


def _spell_names(own: str, data_name: str) -> str:
    return f"{own}=" if own == data_name else f"{own}= or {data_name}="


def _show(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))
