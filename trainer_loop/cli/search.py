"""`python -m trainer_loop.search config=imdb.yaml search.space='{optimizer.lr: ...}' search.metric=accuracy`.

Trains the config with different values of the keys in search.space, and finds the values with the best search.metric.
Each trial is an ordinary run in the search directory. The same command continues a search that was stopped or killed.
Several processes with the same command, also on several machines, share the work.
"""

import sys
from collections.abc import Callable, Sequence

from trainer_loop.cli.arguments import read_values, whole_number
from trainer_loop.config.checks import has_validation
from trainer_loop.config.fields import Config
from trainer_loop.config.find import find_config
from trainer_loop.config.load import public_values, read_config, split_arguments
from trainer_loop.config.schema import KEYS
from trainer_loop.errors import Preempted, UserError, printable, refuse, suggest
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.preempt import catch_signals
from trainer_loop.runtime.streams import put_out, report, safe_streams
from trainer_loop.search.plan import Plan, command_of, list_runs
from trainer_loop.search.space import Space, check_space, list_grid, read_space

USAGE = """\
python -m trainer_loop.search config=imdb.yaml [key=value ...] search.space='{optimizer.lr: {low: 1e-5, high: 1e-3, \
log: true}, batch.size: [16, 32]}' search.metric=accuracy search.trials=20

  config=, key=value  as for python -m trainer_loop.run
  search.space=     keys and their values: a list of choices, or a range {low, high} with log: true or a step; or a YAML
                    file of these. Without it, search.seeds or search.folds repeat the config itself
  search.metric=    a metric of an evaluation: accuracy, or -loss if smaller is better. The value of a trial is the
                    metric of the model it exports: at the best step by checkpoint.best, else at the last evaluation
  search.trials=    number of trials, default 20
  search.seeds=     repeat each trial with this number of seeds, from 1; its value is their mean
  search.folds=     validate each trial on this number of parts of train, in turn (data.fold); its value is their mean
  search.sampler=   tpe (default), random, grid, or the dotted path of an optuna sampler
  search.pruner=    median (default) stops a trial whose evaluations are worse than the median of the others; none; or
                    the dotted path of an optuna pruner
  search.seed=      seed of the sampler, default 0
  search.dir=       directory of the trials, default run_dir with the suffix -search
  search.storage=   a database that several machines share, such as postgresql://me@db.lab/studies; default: SQLite in
                    search.dir
  search.name=      name of the study in the database, default the name of search.dir
  search.launch=    command that starts a trial, such as "accelerate launch --multi_gpu --num_processes 2 -m"
"""
_COUNTS = ("trials", "seeds", "folds", "seed")
_NAMES = ("space", "metric", *_COUNTS, "sampler", "pruner", "dir", "storage", "name", "launch")
_PREFIX = "search."
_MOST = 999_999_999  # upper limit of each count; seeds of generators cannot be much larger
_READERS = {_PREFIX + name: whole_number(least, _MOST) for name, least in zip(_COUNTS, (1, 2, 2, 0), strict=True)}
# Keys that change no update, but change the metric that trials are compared by.
_COMPARED = ("evaluate.", "checkpoint.best", "data.validation", "data.limit.validation", "train.patience")


def main(argv: list[str] | None = None, *, command: Sequence[str] | None = None, poll_seconds: float = 0.2) -> int:
    """Run the command line. Returns the exit code. Tests pass `command`, which trains a trial."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments) or not arguments:
        put_out(f"{USAGE}\n{__doc__}")
        return 0
    with safe_streams(), catch_signals() as preemption:
        try:
            plan = read_plan(arguments, command)
            preemption.defer_signals()
            _search(plan, lambda: preemption.requested, poll_seconds)
        except UserError as error:
            report(error)
            return error.exit_code
        except Preempted as stop:
            _say(str(stop))
            return stop.exit_code
    return 0


def _search(plan: Plan, stops: Callable[[], bool], poll_seconds: float) -> None:
    try:
        from trainer_loop.search.study import Study
        from trainer_loop.search.worker import Worker
    except ModuleNotFoundError as error:
        if error.name not in ("optuna", "sqlalchemy"):
            raise
        raise UserError("a search needs optuna: pip install -e '.[search]'") from error
    worker = Worker(plan, Study(plan), should_stop=stops, say=_say, poll_seconds=poll_seconds)
    worker.work()
    for line in worker.describe():
        _say(line)


def _say(line: str) -> None:
    print(printable(line), flush=True)


def read_plan(arguments: Sequence[str], command: Sequence[str] | None = None) -> Plan:
    """Read the arguments. Raises UserError with all problems of the arguments, the space and the config."""
    search_keys: dict[str, str] = {}
    config_arguments, problems = [], []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith(_PREFIX):
            config_arguments.append(argument)
        elif name.removeprefix(_PREFIX) not in _NAMES:
            near = suggest(name, [_PREFIX + known for known in _NAMES])
            problems.append(f"{name}: there is no such key{near or '; see --help'}")
        elif not equals or not value:
            problems.append(f"{name} has no value; write {name}=...")
        else:
            search_keys[name.removeprefix(_PREFIX)] = value
    values, wrong = read_values(
        {_PREFIX + name: search_keys[name] for name in _COUNTS if name in search_keys}, _READERS
    )
    counts = {name: values.get(_PREFIX + name) for name in _COUNTS}
    problems += wrong
    space, wrong = read_space(search_keys["space"]) if "space" in search_keys else ({}, [])
    problems += wrong
    try:
        path, overrides, _ = split_arguments(config_arguments) if config_arguments else (None, [], None)
        if path is not None:
            find_config(path)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from error
    config = read_config(path, overrides).config
    first = next(iter(list_runs(counts["seeds"], counts["folds"]).values()))
    problems += check_space(space, path, [*overrides, *first])
    problems += _check_together(search_keys, counts, space, config)
    if search_keys.get("sampler") == "grid" and space:
        try:
            counts["trials"] = min(counts["trials"] or len(list_grid(space)), len(list_grid(space)))
        except UserError as error:
            problems += error.problems
    refuse(list(dict.fromkeys(problems)))
    directory = expand_home(search_keys.get("dir", f"{config.run_dir}-search"), place="search.dir")
    sampler, seed = search_keys.get("sampler", "tpe"), counts["seed"] or 0
    shared = {"metric": search_keys["metric"], "seeds": counts["seeds"], "folds": counts["folds"], "sampler": sampler}
    shared |= {"seed": seed, "space": str(dict(space))}
    return Plan(
        config=path,
        overrides=overrides,
        space=space,
        metric=search_keys["metric"],
        trials=counts["trials"] or (20 if space else 1),
        seeds=counts["seeds"],
        folds=counts["folds"],
        directory=directory,
        settings=_list_shared_keys(config, space) | {_PREFIX + name: value for name, value in shared.items()},
        command=command or command_of(search_keys.get("launch", "")),
        url=search_keys.get("storage", f"sqlite:///{directory.absolute() / 'study.db'}"),
        name=search_keys.get("name", directory.absolute().name),
        sampler=sampler,
        pruner=search_keys.get("pruner", "median"),
        seed=seed,
    )


def _list_shared_keys(config: Config, space: Space) -> dict[str, object]:
    """Return the config keys that must be the same in all processes that work on one study."""
    return {
        key: value
        for key, value in public_values(config).items()
        if (KEYS[key].on_resume != "free" or key.startswith(_COMPARED)) and key not in space
    }


def _check_together(
    search_keys: dict[str, str], counts: dict[str, int | None], space: Space, config: Config
) -> list[str]:
    """Return conflicts between keys of the search, and between them and the config."""
    problems, seeds, folds = [], counts["seeds"], counts["folds"]
    if "space" not in search_keys and seeds is None and folds is None:
        problems.append("search.space= is missing: such as {optimizer.lr: {low: 1e-5, high: 1e-3, log: true}}")
    if config.dry_run:
        problems.append("dry_run: the first trial is checked by a dry run in any case; leave it out")
    if "space" not in search_keys and (counts["trials"] or 1) > 1:
        problems.append("search.trials: without search.space all trials would be the same; leave it out")
    metric = search_keys.get("metric", "")
    if not metric.removeprefix("-"):
        problems.append("search.metric= is missing: a metric of an evaluation, accuracy, or -loss")
    elif config.evaluate.every == "never":
        problems.append(f"search.metric={metric}: evaluate.every is never; set it to epoch or a number of steps")
    elif not has_validation(config) and folds is None:
        problems.append(f"search.metric={metric}: there are no validation rows; set data.validation or search.folds")
    set_by_search = {"seed": seeds, "data.fold": folds, "data.validation": folds, "data.validation_fraction": folds}
    problems += [
        f"search.space: {key} is set by search.{'seeds' if key == 'seed' else 'folds'}; leave one out"
        for key in space
        if set_by_search.get(key) is not None
    ]
    if folds is not None and config.data.streaming:
        problems.append("search.folds: no part of a stream can be cut off; set data.streaming=false")
    return problems
