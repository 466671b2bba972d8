"""`python -m trainer_loop.predict model=runs/imdb text="..."`: new rows through an exported model.

One text prints its prediction, such as a label and its probability (a causal LM: its continuation). A file is written
again with the same rows, in the same order, plus what is predicted (a causal LM: loss and perplexity of each text, and
with max_new_tokens= its continuation).
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

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal acts on instead of showing it


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(argv, f"{USAGE}\n", lambda arguments: _predict(read_request(arguments)), prints_result=True)


def _predict(request: Request) -> None:
    model_dir = find_model(request.model)
    with importing_torch():  # seconds
        quieten_libraries()
        from trainer_loop.predictor import check_writes, find_task_of, read_record

    record = read_record(model_dir)
    if request.file is not None:
        _predict_file(request.file, request, model_dir, record)
    else:
        refuse(check_writes(find_task_of(model_dir, record), request.generation))
        _print_one(load_predictor(model_dir, request), request)


def load_predictor(model_dir: Path, request: Request) -> "Predictor":
    """The model, which writes texts as the command says."""
    from trainer_loop.predictor import Predictor

    predictor = Predictor.load(model_dir, trust_remote_code=request.trust_remote_code)
    predictor.use_generation(request.generation)
    return predictor


def _predict_file(file: str, request: Request, model_dir: Path, record: "ExportRecord | None") -> None:
    """The file is read and found good before the model loads."""
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
        continued = predictor.generate(row["text"])
        put_out(_CONTROL.sub(lambda found: repr(found.group())[1:-1], continued) + "\n")
        return
    (predicted,) = predictor.predict(*([value] for value in row.values()))
    put_out(" ".join(f"{name}={_show(value)}" for name, value in predicted.items()) + "\n")


def _name_columns(given: Mapping[str, str], predictor: "Predictor") -> dict[str, str]:
    """The row by the task's columns, in their order; see `Predictor.match_columns`."""
    reads = predictor.reads
    names = predictor.match_columns(given)
    spelled = [_spell_names(name, predictor.columns[name]) for name in reads]
    told = f"this model reads {', '.join(spelled)}"
    known = [*reads, *(predictor.columns[name] for name in reads)]
    problems = [
        f"{name}= is given, and {told}{did_you_mean(name, known)}" for name, own in names.items() if own not in reads
    ]
    problems += [f'{own}= is missing: {told}; add {own}="..."' for own in reads if own not in names.values()]
    problems += [
        f"{' and '.join(f'{name}=' for name in twice)} name one column; leave one out"
        for own in reads
        if len(twice := [name for name in given if names[name] == own]) > 1
    ]
    refuse(problems)
    by_own = {names[name]: value for name, value in given.items()}
    return {name: by_own[name] for name in reads}


def _spell_names(own: str, trained: str) -> str:
    return f"{own}=" if own == trained else f"{own}= or {trained}="


def _show(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))
