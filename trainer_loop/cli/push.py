"""`python -m trainer_loop.push model=runs/imdb repo=me/imdb-bert`: uploads a trained model to the Hugging Face hub."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_loop.cli.arguments import expand_model, find_model, nonempty_text, read_arguments, true_or_false
from trainer_loop.cli.command import run_command
from trainer_loop.errors import UserError, refuse
from trainer_loop.record.adapter_config import ADAPTER_CONFIG
from trainer_loop.record.run_dir import EXPORT_RECORD, RunDir
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.quiet import quieten_loggers

if TYPE_CHECKING:  # importing it takes half a second
    from trainer_loop.record.hub_push import Files

USAGE = """\
python -m trainer_loop.push model=runs/imdb repo=me/imdb-bert

  model=     a run directory, or the directory of a model or adapter that transformers or peft can load
  repo=      name of the repository: me/imdb-bert, or imdb-bert in your own namespace; default: the run's hub.push
  private=   true or false: whether a new repository is private; default: the run's hub.private, else true
  message=   the commit message

One commit holds the model (or adapter), its tokenizer, its card and the run's config.yaml. If the run has them, it also
holds the report, written again without rows of the data, and the ONNX model of python -m trainer_loop.onnx. Files that
are there already are not uploaded again. Optimizer states, logs, data and pickles are not uploaded. Secrets in the
config are masked. The token is that of `hf auth login`, or HF_TOKEN; it needs write access."""
READERS = {"model": nonempty_text, "repo": nonempty_text, "private": true_or_false, "message": nonempty_text}


@dataclass(frozen=True)
class Request:
    """Arguments of the command."""

    model: str
    repo: str | None = None
    private: bool | None = None
    message: str | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(
        argv,
        f"{USAGE}\n",
        lambda arguments: _push(Request(**read_arguments(arguments, READERS))),
        when_stopped="stopped; the same command goes on with what is missing",
    )


def _push(request: Request) -> None:
    model, run_dir = _find_model(request.model)
    repo, private = _read_hub_keys(run_dir)
    repo = request.repo or repo
    private = private if request.private is None else request.private
    if repo is None:
        raise UserError("repo= is missing: the name of a repository of the hub, such as repo=me/imdb-bert")

    from huggingface_hub.errors import HTTPError  # takes half a second
    from huggingface_hub.utils import disable_progress_bars

    from trainer_loop.record.hub_access import check_access, explain_failure
    from trainer_loop.record.hub_push import gather_run, push_files, select_files
    from trainer_loop.record.model_card import make_short_card

    quieten_loggers()  # after the import, because huggingface_hub sets its log level on import
    if not sys.stderr.isatty():
        disable_progress_bars()
    problems, notes = check_access(
        repo, private=private, place=f"repo={repo}", later="give the command again where there is network"
    )
    refuse(problems)
    for note in notes:
        print(f"warning: {note}")
    extra_files, notes = _gather_extra_files(run_dir)
    files = gather_run(model, None if run_dir is None else run_dir.config, extra_files)
    if left_out := select_files(model)[1]:
        print(f"left out: {', '.join(left_out)}")
    for note in notes:
        print(note)
    try:
        push = push_files(
            files,
            repo,
            private=private,
            message=request.message or "Upload the model",
            default_card=make_short_card(model).encode(),
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{request.model} was not pushed: {explain_failure(error)}; the same command tries again, and uploads only "
            "what is missing"
        ) from error
    print(push.describe(str(model)))


def _find_model(name: str) -> tuple[Path, RunDir | None]:
    """Return the directory of the model, and the run directory that it belongs to, or None."""
    path = expand_model(name)
    if all((path / part).is_file() for part in ("manifest.json", "state.json")):
        raise UserError(f"model={name} is a checkpoint to go on from, and no model; give the run directory")
    model = find_model(name, marks=["config.json", ADAPTER_CONFIG, EXPORT_RECORD])
    run_dir = RunDir(path if model != path else path.resolve().parent)
    is_of_run = model != path or (run_dir.model == path.resolve() and run_dir.config.is_file())
    return model, run_dir if is_of_run else None


def _gather_extra_files(run_dir: RunDir | None) -> "tuple[Files, list[str]]":
    """Return the report and the ONNX model of a run, if it has them, and notes on what is left out."""
    if run_dir is None or not (run_dir.report.is_file() or run_dir.onnx.is_dir()):
        return {}, []
    with importing_torch():  # takes seconds
        from trainer_loop.publishing import gather_extra_files

    quieten_loggers()
    return gather_extra_files(run_dir, with_report=run_dir.report.is_file())


def _read_hub_keys(run_dir: RunDir | None) -> tuple[str | None, bool]:
    """Return `hub.push` and `hub.private` of the run's config."""
    if run_dir is None or not run_dir.config.is_file():
        return None, True
    from trainer_loop.config.load import read_config

    try:
        hub = read_config(str(run_dir.config), []).config.hub  # problems of other keys do not matter here
    except RecursionError:  # reported when the config is pushed
        return None, True
    return hub.push, hub.private
