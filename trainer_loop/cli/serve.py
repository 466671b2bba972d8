"""`python -m trainer_loop.serve model=runs/imdb`: an exported model behind an address of HTTP."""

import os
import sys
from dataclasses import dataclass, fields
from typing import Any

from trainer_loop.cli.arguments import find_model, read_whole, split_arguments
from trainer_loop.cli.command import run_command
from trainer_loop.cli.predict import load_predictor
from trainer_loop.cli.predict_arguments import OF_GENERATION, Request, read_values
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
  port=               default 8000; 0: any that is free
  max_body_bytes=     of a request, default {_L.max_body_bytes}
  max_rows=           of a request, default {_L.max_rows}
  max_text_length=    characters of a text, default {_L.max_text_length}
  max_list_length=    elements of a list in a row: words, choices, messages; default {_L.max_list_length}
  max_pixels=         of an image, default {_L.max_pixels}
  max_queue=          requests that are read, wait or are predicted at a time, default {_L.max_queue}
  max_seconds=        from the first byte of a request to its answer, default {_L.max_seconds}
  batch_rows=         rows of several requests that are predicted together, default {_L.batch_rows}
  batch_ms=           milliseconds that a request waits for others, default {_L.batch_ms}
  max_new_tokens=, num_beams=, length_penalty=, no_repeat_ngram_size=, trust_remote_code=true
                      as for python -m trainer_loop.predict; with one of the first four, a language model also answers
                      with the continuation of each text

{_TOKEN} in the environment: requests must then bear this token. See docs/serve.md.
"""
_MOST = {"port": 65_535, "max_seconds": 86_400, "batch_ms": 10_000}
_LEAST = {"port": 0, **{field.name: 1 for field in fields(ServiceLimits)}, "batch_ms": 0}


@dataclass(frozen=True)
class _Options:
    """request: the model, and how it is loaded. token: that requests must bear; None: none need one."""

    request: Request
    host: str
    port: int
    limits: ServiceLimits
    token: str | None


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    return run_command(argv, _USAGE, lambda arguments: _serve(_read_arguments(arguments)))


def _read_arguments(arguments: list[str]) -> _Options:
    of_model = ["model", *OF_GENERATION, "trust_remote_code"]
    pairs, problems = split_arguments(arguments, [*of_model, "host", *_LEAST])
    given: dict[str, Any] = dict(pairs)
    problems += [*read_values(given), *read_whole(given, _LEAST)]
    problems += [
        f"{name}={given[name]}: it must be at most {most:,}"
        for name, most in _MOST.items()
        if isinstance(given.get(name), int) and given[name] > most
    ]
    if "host" in given and not given["host"]:
        problems.append("host= is empty; leave it out, or write host=0.0.0.0 for every network")
    token = os.environ.get(_TOKEN)
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        problems.append(f"{_TOKEN}: it must be ASCII letters, digits and signs; unset it, or set another")
    refuse(problems)
    request = Request(**{name: given[name] for name in of_model if name in given})
    limits = ServiceLimits(**{field.name: given[field.name] for field in fields(ServiceLimits) if field.name in given})
    return _Options(request, given.get("host", "127.0.0.1"), given.get("port", 8000), limits, token)


def _serve(options: _Options) -> None:
    """All that can be wrong is found before the model loads."""
    none = "neither a run directory with model/ nor a model with config.json"
    model_dir = find_model(options.request.model, marks=["config.json"], otherwise=none)
    keep_freed_memory()
    with importing_torch():  # seconds
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
        told = f"anybody who reaches {options.host} may send requests; set {_TOKEN}, or leave host= out"
        print(f"warning: {told}", file=sys.stderr, flush=True)
    predictor = load_predictor(model_dir, options.request)
    service = Service(predictor, options.limits, continues=bool(options.request.generation))
    address = spell_address(bound)
    told = f"serving {options.request.model} at {address}; {address}/docs says how to ask; Ctrl-C ends it\n"
    serve(make_app(service, token=options.token), service, bound, on_start=lambda: put_out(told))
    put_out("stopped: every request that was accepted is answered\n")
