"""`python -m trainer_loop.search config=imdb.yaml search.space='{optimizer.lr: ...}' search.metric=accuracy`.

Trains the config with values of the keys in search.space, and finds those with the best search.metric. Each trial is an
ordinary run in the search directory. A search that was stopped or killed goes on by the same command, and several of
the same command, also on several machines, share the work.
"""

import sys
from collections.abc import Callable, Sequence

from trainer_loop.cli.arguments import read_values, whole
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
                    file of them. Left out with search.seeds or search.folds: the config alone is repeated
  search.metric=    of an evaluation: accuracy, or -loss where smaller is better. A trial's value is that of the model
                    it exports: of the best step by checkpoint.best, else of the last evaluation
  search.trials=    default 20
  search.seeds=     repeat each trial with so many seeds, from 1; its value is their mean
  search.folds=     validate each trial on so many parts of train, in turn (data.fold); its value is their mean
  search.sampler=   tpe (default), random, grid, or the dotted path of a sampler of optuna
  search.pruner=    median (default) stops a trial whose evaluations are worse than the median of the others; none; or
                    the dotted path of a pruner of optuna
  search.seed=      of the sampler, default 0
  search.dir=       directory of the trials, default run_dir with -search behind it
  search.storage=   a database that several machines share, such as postgresql://me@db.lab/studies; default: SQLite in
                    search.dir
  search.name=      of the study in the database, default the name of search.dir
  search.launch=    what starts a trial, such as "accelerate launch --multi_gpu --num_processes 2 -m"
"""
_COUNTS = ("trials", "seeds", "folds", "seed")
_NAMES = ("space", "metric", *_COUNTS, "sampler", "pruner", "dir", "storage", "name", "launch")
_PREFIX = "search."
_MOST = 999_999_999  # of each of them; generators take no much larger seed
_READERS = {_PREFIX + name: whole(least, _MOST) for name, least in zip(_COUNTS, (1, 2, 2, 0), strict=True)}
# Keys that change no update and yet what is compared.
_COMPARED = ("evaluate.", "checkpoint.best", "data.validation", "data.limit.validation", "train.patience")


def main(argv: list[str] | None = None, *, command: Sequence[str] | None = None, poll_seconds: float = 0.2) -> int:
    """Run the command line; returns the exit code. command: what trains a trial, in tests."""
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
    """Raises UserError with all that is wrong with the arguments, the space and the config."""
    own: dict[str, str] = {}
    others, problems = [], []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith(_PREFIX):
            others.append(argument)
        elif name.removeprefix(_PREFIX) not in _NAMES:
            near = suggest(name, [_PREFIX + known for known in _NAMES])
            problems.append(f"{name}: there is no such key{near or '; see --help'}")
        elif not equals or not value:
            problems.append(f"{name} has no value; write {name}=...")
        else:
            own[name.removeprefix(_PREFIX)] = value
    values, wrong = read_values({_PREFIX + name: own[name] for name in _COUNTS if name in own}, _READERS)
    counts = {name: values.get(_PREFIX + name) for name in _COUNTS}
    problems += wrong
    space, wrong = read_space(own["space"]) if "space" in own else ({}, [])
    problems += wrong
    try:
        path, overrides, _ = split_arguments(others) if others else (None, [], None)
        if path is not None:
            find_config(path)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from error
    config = read_config(path, overrides).config
    first = next(iter(list_runs(counts["seeds"], counts["folds"]).values()))
    problems += check_space(space, path, [*overrides, *first])
    problems += _check_together(own, counts, space, config)
    if own.get("sampler") == "grid" and space:
        try:
            counts["trials"] = min(counts["trials"] or len(list_grid(space)), len(list_grid(space)))
        except UserError as error:
            problems += error.problems
    refuse(list(dict.fromkeys(problems)))
    directory = expand_home(own.get("dir", f"{config.run_dir}-search"), place="search.dir")
    sampler, seed = own.get("sampler", "tpe"), counts["seed"] or 0
    agreed = {"metric": own["metric"], "seeds": counts["seeds"], "folds": counts["folds"], "sampler": sampler}
    agreed |= {"seed": seed, "space": str(dict(space))}
    return Plan(
        config=path,
        overrides=overrides,
        space=space,
        metric=own["metric"],
        trials=counts["trials"] or (20 if space else 1),
        seeds=counts["seeds"],
        folds=counts["folds"],
        directory=directory,
        settings=_list_kept(config, space) | {_PREFIX + name: value for name, value in agreed.items()},
        command=command or command_of(own.get("launch", "")),
        url=own.get("storage", f"sqlite:///{directory.absolute() / 'study.db'}"),
        name=own.get("name", directory.absolute().name),
        sampler=sampler,
        pruner=own.get("pruner", "median"),
        seed=seed,
    )


def _list_kept(config: Config, space: Space) -> dict[str, object]:
    """The keys of the runs that must be the same for all processes that ever work on one study."""
    return {
        key: value
        for key, value in public_values(config).items()
        if (KEYS[key].on_resume != "free" or key.startswith(_COMPARED)) and key not in space
    }


def _check_together(own: dict[str, str], counts: dict[str, int | None], space: Space, config: Config) -> list[str]:
    """What is wrong with the keys of the search beside each other, and beside the config."""
    problems, seeds, folds = [], counts["seeds"], counts["folds"]
    if "space" not in own and seeds is None and folds is None:
        problems.append("search.space= is missing: such as {optimizer.lr: {low: 1e-5, high: 1e-3, log: true}}")
    if config.dry_run:
        problems.append("dry_run: the first trial is checked by a dry run in any case; leave it out")
    if "space" not in own and (counts["trials"] or 1) > 1:
        problems.append("search.trials: without search.space all trials would be the same; leave it out")
    metric = own.get("metric", "")
    if not metric.removeprefix("-"):
        problems.append("search.metric= is missing: a metric of an evaluation, accuracy, or -loss")
    elif config.evaluate.every == "never":
        problems.append(f"search.metric={metric}: evaluate.every is never; set it to epoch or a number of steps")
    elif not has_validation(config) and folds is None:
        problems.append(f"search.metric={metric}: there are no validation rows; set data.validation or search.folds")
    taken = {"seed": seeds, "data.fold": folds, "data.validation": folds, "data.validation_fraction": folds}
    problems += [
        f"search.space: {key} is set by search.{'seeds' if key == 'seed' else 'folds'}; leave one out"
        for key in space
        if taken.get(key) is not None
    ]
    if folds is not None and config.data.streaming:
        problems.append("search.folds: no part of a stream can be cut off; set data.streaming=false")
    return problems
