"""`python -m trainer_loop.onnx model=runs/imdb`: converts the exported model of a run to ONNX."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_loop.cli.arguments import find_model, nonempty_text, number, read_arguments, true_or_false
from trainer_loop.cli.command import run_command
from trainer_loop.cli.predict_arguments import read_rows
from trainer_loop.data.wording import plural
from trainer_loop.errors import UserError, displayed, refuse
from trainer_loop.record.adapter_config import ADAPTER_CONFIG
from trainer_loop.record.onnx_folder import is_onnx_folder
from trainer_loop.record.run_dir import RunDir
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.streams import put_out

if TYPE_CHECKING:  # importing them takes seconds
    from trainer_loop.predictor import Predictor
    from trainer_loop.record.export import ExportRecord
    from trainer_loop.tasks.task import Rows

USAGE = """\
python -m trainer_loop.onnx model=runs/imdb
python -m trainer_loop.onnx model=runs/imdb data=new_reviews.csv

  model=           a run directory, or the directory of a model or adapter that transformers or peft can load
  output=          the folder to write; default: onnx/ in the run directory, else MODEL-onnx beside the model
  data=            rows on which both models are compared, as in data.train (.csv .jsonl .parquet ...), with the columns
                   that the model was trained on; default: example rows of the task, short and long
  tolerance=       the largest allowed difference between two outputs, default 0.0001
  trust_remote_code=true   lets Python code that came with the model run

The folder gets model.onnx, the config, the tokenizer, and onnx.json, which records how it was made. The ONNX model
takes any number of rows, and as many tokens as the model. An adapter is merged. The model and ONNX Runtime (on the
CPU) predict the rows one by one and in padded batches, and the folder is written only if all outputs agree. The command
replaces a folder only if it wrote it itself. It needs pip install onnx onnxruntime onnxscript."""

_TOLERANCE = 1e-4
READERS = {
    "model": nonempty_text,
    "output": lambda text: Path(nonempty_text(text)).expanduser(),
    "data": lambda text: read_rows(nonempty_text(text)),
    "tolerance": number("a number above 0, such as 1e-4", above=0),
    "trust_remote_code": true_or_false,
}
_COLUMN_KEY = re.compile(r"\w+_column=(.+?):")


@dataclass(frozen=True)
class Request:
    """Arguments of the command."""

    model: str
    output: Path | None = None
    data: Any = None  # a file, a list of files, or a query, as in `data.train`
    tolerance: float = _TOLERANCE
    trust_remote_code: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(argv, f"{USAGE}\n", lambda arguments: _export(Request(**read_arguments(arguments, READERS))))


def _export(request: Request) -> None:
    """Export the model. Everything is checked before the model loads."""
    model_dir = find_model(request.model, marks=["config.json", ADAPTER_CONFIG])
    target = request.output or _find_folder(model_dir)
    problems = _check_folder(target)
    with importing_torch():  # takes seconds
        from trainer_loop.onnx.export import check_task, export_onnx
        from trainer_loop.onnx.program import check_packages
        from trainer_loop.predictor import Predictor, find_task_of, read_record
        from trainer_loop.runtime.quiet import quieten_libraries

    quieten_libraries()
    record = read_record(model_dir)
    refuse([*problems, *check_packages(), *check_task(find_task_of(model_dir, record))])
    read_rows = _prepare_rows(request, model_dir, record)
    predictor = Predictor.load(model_dir, trust_remote_code=request.trust_remote_code)
    rows, origin_of = read_rows(predictor)
    comparison = export_onnx(predictor, model_dir, target, rows=rows, origin_of=origin_of, tolerance=request.tolerance)
    put_out(
        f"{plural(comparison.rows, 'row')} answered by both: largest difference {comparison.difference:.2g}"
        f"{f' ({comparison.place})' if comparison.difference else ''}, allowed {request.tolerance:g}\n"
        f"written to {displayed(target)}\n"
    )


def _find_folder(model_dir: Path) -> Path:
    model = model_dir.resolve()
    run_dir = RunDir(model.parent)
    is_of_run = run_dir.model == model and run_dir.config.is_file()
    return run_dir.onnx if is_of_run else model.with_name(f"{model.name}-onnx")


def _check_folder(target: Path) -> list[str]:
    if Path.cwd().is_relative_to(target.resolve()):  # replacing it would remove the current directory
        return [f"output={target}: it is the current folder, or holds it; name one in it, such as output=onnx"]
    if not target.exists() or is_onnx_folder(target) or (target.is_dir() and not any(target.iterdir())):
        return []
    return [f"output={target}: it is there, and no folder that this command wrote; name another with output="]


def _prepare_rows(
    request: Request, model_dir: Path, record: "ExportRecord | None"
) -> "Callable[[Predictor], tuple[Rows, Callable[[int], str]]]":
    """Read the files now; return a function that returns the rows, by the task's columns, and their names in errors."""
    if request.data is None:
        from trainer_loop.onnx.export import make_example_rows

        return lambda predictor: (make_example_rows(predictor), lambda number: f"example row {number + 1}")
    from trainer_loop.cli import predict_arguments
    from trainer_loop.cli.predict_files import prepare_file

    predict_request = predict_arguments.Request(model=request.model, file=request.data, metrics=False)
    try:
        job = prepare_file(request.data, predict_request, model_dir, record)
    except UserError as error:  # its problems name keys of `predict`
        problems = [_COLUMN_KEY.sub(r"column \1:", problem) for problem in error.problems]
        raise UserError([f"data={request.data}: {problem}" for problem in problems]) from error
    rows = {own: list(job.inputs.rows[name]) for own, name in job.columns.names.items()}
    if not job.kept:
        raise UserError(f"data={request.data}: it has no rows")
    return lambda _: (rows, job.inputs.origins.place)
