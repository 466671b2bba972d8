"""`python -m trainer_loop.serve model=runs/imdb`: serves an exported model over HTTP."""

import os
import sys
from dataclasses import dataclass, fields

from trainer_loop.cli.arguments import Reader, collect_arguments, find_model, whole_number
from trainer_loop.cli.command import run_command
from trainer_loop.cli.predict import load_predictor
from trainer_loop.cli.predict_arguments import OF_GENERATION, READERS, Request
from trainer_loop.errors import UserError, refuse
from trainer_loop.runtime.host import expect_many_shapes, keep_freed_memory
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.streams import put_out
from trainer_loop.service.limits import ServiceLimits

_L = ServiceLimits()
_TOKEN = "TRAINER_LOOP_TOKEN"
_USAGE = f"""\
python -m trainer_loop.serve model=runs/imdb port=8000

  model=              a run directory, or the directory of a model that transformers can load
  host=               the address to bind to, default 127.0.0.1: this machine alone; 0.0.0.0: every network
  port=               default 8000; 0: any free port
  max_body_bytes=     size of a request, default {_L.max_body_bytes}
  max_rows=           rows of a request, default {_L.max_rows}
  max_text_length=    characters of a text, default {_L.max_text_length}
  max_list_length=    elements of a list in a row: words, choices, messages; default {_L.max_list_length}
  max_pixels=         pixels of an image, default {_L.max_pixels}
  max_queue=          requests that are read, wait or are predicted at a time, default {_L.max_queue}
  max_seconds=        time from the first byte of a request to its answer, default {_L.max_seconds}
  batch_rows=         rows of several requests that are predicted together, default {_L.batch_rows}
  batch_ms=           milliseconds that a request waits for others, default {_L.batch_ms}
  max_new_tokens=, num_beams=, length_penalty=, no_repeat_ngram_size=, trust_remote_code=true
                      as for python -m trainer_loop.predict; with one of the first four, a language model also answers
                      with the continuation of each text

If the environment variable {_TOKEN} is set, requests must send this token. See docs/serve.md.
"""
_MODEL_KEYS = ("model", *OF_GENERATION, "trust_remote_code")  # keys that `predict` has, too
_LIMITS = [field.name for field in fields(ServiceLimits)]
_READERS: dict[str, Reader] = {
    **{name: READERS[name] for name in _MODEL_KEYS},
    "host": str,
    "port": whole_number(0, 65_535),
    **dict.fromkeys(_LIMITS, whole_number(1)),
    "max_seconds": whole_number(1, 86_400),
    "batch_ms": whole_number(0, 10_000),
}


@dataclass(frozen=True)
class _Options:
    """Arguments of the command.

    Attributes:
        request: The model and its generation options.
        token: The token that requests must send; None: they need none.
    """

    request: Request
    host: str
    port: int
    limits: ServiceLimits
    token: str | None


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    return run_command(argv, _USAGE, lambda arguments: _serve(read_options(arguments)))


def read_options(arguments: list[str]) -> _Options:
    values, problems = collect_arguments(arguments, _READERS)
    if values.get("host") == "":
        problems.append("host= is empty; leave it out, or write host=0.0.0.0 for every network")
    token = os.environ.get(_TOKEN)
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        problems.append(f"{_TOKEN}: it must be ASCII letters, digits and signs; unset it, or set another")
    refuse(problems)
    request = Request(**{name: values[name] for name in _MODEL_KEYS if name in values})
    limits = ServiceLimits(**{name: values[name] for name in _LIMITS if name in values})
    return _Options(request, values.get("host", "127.0.0.1"), values.get("port", 8000), limits, token)


def _serve(options: _Options) -> None:
    """Serve the model. Everything is checked before the model loads."""
    model_dir = find_model(options.request.model)
    keep_freed_memory()
    with importing_torch():  # takes seconds
        quieten_libraries()
        from trainer_loop.predictor import check_writes, find_task_of, read_record
        from trainer_loop.tasks.find import load_task

        try:
            from trainer_loop.service.app import Service, make_app
            from trainer_loop.service.server import bind, is_public, serve, spell_address
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "fastapi_offline", "prometheus_client", "uvicorn"):
                raise
            raise UserError(f"serving needs the package {error.name}: pip install -e '.[serve]'") from error
    task = find_task_of(model_dir, read_record(model_dir))
    refuse(check_writes(task, options.request.generation))
    if load_task(task)().has_tokens:
        expect_many_shapes()
    bound = bind(options.host, options.port)
    if is_public(bound) and options.token is None:
        warning = f"anyone who can reach {options.host} can send requests; set {_TOKEN}, or leave host= out"
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    predictor = load_predictor(model_dir, options.request)
    service = Service(predictor, options.limits, continues=bool(options.request.generation))
    address = spell_address(bound)
    message = f"serving {options.request.model} at {address}; {address}/docs describes the API; Ctrl-C stops it\n"
    serve(make_app(service, token=options.token), service, bound, on_start=lambda: put_out(message))
    put_out("stopped: every request that was accepted is answered\n")
