"""The whole config and all data, judged before a model loads or a process meets another: every problem at once."""

import dataclasses
from collections.abc import Sequence

import torch

from trainer_loop.config.checks import missing_parts
from trainer_loop.config.fields import Config
from trainer_loop.errors import UserError
from trainer_loop.judge.components import check_components, check_given_task, make_task
from trainer_loop.judge.hub import check_hub
from trainer_loop.judge.parts import Given, Parts, attempt
from trainer_loop.judge.rows import judge_rows
from trainer_loop.judge.texts import judge_texts
from trainer_loop.parallel.processes import choose_precision
from trainer_loop.record.logs import Console
from trainer_loop.runtime.compiler import check_compiler
from trainer_loop.tasks.task import TextTask


def judge(config: Config, *, problems: Sequence[str], console: Console, given: Given) -> Parts:
    """Judge everything in one go, then tokenise.

    problems: what is already known to be wrong with the config. Raises UserError with these and all others.
    """
    problems = list(problems)
    precision = attempt(problems, lambda: choose_precision(config.train.precision))
    if config.model.compile:
        attempt(problems, lambda: check_compiler("cuda" if torch.cuda.is_available() else "cpu"))
    task = given.task or attempt(problems, lambda: make_task(config))
    if given.task is not None:
        problems += check_given_task(config, given.task)
    is_given = {"model": given.model is not None, "train": "train" in given.rows, "validation": bool(given.sets)}
    missing = {part: problem for part, problem in missing_parts(config).items() if not is_given[part]}
    problems += missing.values()
    problems += check_components(config, task, given)
    problems += check_hub(config, console)
    if task is None or isinstance(task, TextTask):
        parts = judge_texts(config, task, problems, console, given, has_rows="train" not in missing)
    else:
        parts = judge_rows(config, task, problems, given)
    if problems:
        raise UserError(list(dict.fromkeys(problems)))  # one cause may be found in two places
    assert parts is not None and precision is not None
    return dataclasses.replace(parts, precision=precision)
