"""Translate values of transformers.TrainingArguments into keys of the config and their values.

translations.py has the key of each field. This module translates the fields whose values change, with one function for
each group of fields. Values of the other fields are copied, or reported in a note.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from yaml.nodes import ScalarNode

from trainer_loop.config.schema import KEYS
from trainer_loop.config.values import shown
from trainer_loop.config.yaml_core import core_tag, plain
from trainer_loop.errors import Problems, UserError
from trainer_loop.migrate.trainer_optimizers import ADAMW, ADEMAMIX_ARGS, OPTIMIZERS
from trainer_loop.migrate.translations import NOT_NEEDED, TASK_ARGUMENTS, TRANSLATIONS, with_note
from trainer_loop.parallel.accelerate_file import FSDP_STRATEGIES


class Setting(NamedTuple):
    """A key, its value, and the fields it comes from; no fields: a default of Trainer that differs from ours."""

    key: str
    value: object
    names: tuple[str, ...] = ()


class Note(NamedTuple):
    """Why a field in the file has no key here, and what to do instead."""

    name: str
    text: str


# Values that to_json_string writes for unset fields, if they differ from the default of the class.
_WRITTEN_DEFAULTS: dict[str, object] = {
    "hub_token": "<HUB_TOKEN>",
    "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>",
    "torch_compile_backend": "inductor",
    "local_rank": 0,
    "accelerator_config": {
        **dict.fromkeys(("split_batches", "non_blocking", "use_configured_state"), False),
        **dict.fromkeys(("even_batches", "use_seedable_sampler"), True),
        **dict.fromkeys(("dispatch_batches", "gradient_accumulation_kwargs"), None),
    },
    "fsdp_config": {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False},
    "warmup_ratio": 0.0,
    "fp16_backend": "auto",
    "half_precision_backend": "auto",
    "fp16_opt_level": "O1",
    "save_safetensors": True,
    "past_index": -1,
    "ray_scope": "last",
    "fsdp_min_num_params": 0,
}

# Fields of older versions -> their current name; the values mean the same.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",
}
# Boolean fields of older versions -> the current field, and its value if they are true.
_SWITCHES = {"adafactor": ("optim", "adafactor"), "evaluate_during_training": ("eval_strategy", "steps")}
_ARGUMENT = re.compile(r"\{(\w+): (?:\{(\w+):)?")  # argument and entry: `fim` and `rate` of `{fim: {rate: 0.5}}`


class Arguments:
    """Values of the file under the current field names, with the defaults of TrainingArguments for the rest."""

    def __init__(self, values: Mapping[str, Any], *, defaults: Mapping[str, Any]):
        self._defaults = defaults
        self._values = dict(values)
        self._older_names: dict[str, str] = {}  # current name -> older name in the file
        for old, new in RENAMED.items():
            self._rename(old, new, values.get(old))
        for old, (new, value) in _SWITCHES.items():
            self._rename(old, new, value if values.get(old) is True else None)

    def _rename(self, old: str, new: str, value: object) -> None:
        """Move a value to its current name, unless the file also sets that."""
        if not self._is_default(old, value) and not self.changed(new):
            self._values[new] = value
            self._older_names[new] = old
            self._values.pop(old, None)

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name, self._defaults.get(name))

    def changed(self, *names: str) -> tuple[str, ...]:
        """Return the names, as in the file, of those fields (by default of all) that do not have their default."""
        return tuple(
            self._older_names.get(name, name)
            for name in names or self._values
            if name in self._values and not self._is_default(name, self._values[name])
        )

    def value_as_written(self, name: str) -> object:
        """Return the value of a field by its name in the file."""
        return self[next((new for new, old in self._older_names.items() if old == name), name)]

    def _is_default(self, name: str, value: object) -> bool:
        default, unset = self._defaults.get(name), _WRITTEN_DEFAULTS.get(name)
        if isinstance(value, dict) and isinstance(unset, dict):
            return all(key in unset and unset[key] == entry for key, entry in value.items())
        if name in _WRITTEN_DEFAULTS and value == unset:
            return True
        return value == default or (_is_empty(value) and _is_empty(default))


def _is_empty(value: object) -> bool:
    """Return whether a value means nothing: null, false, an empty text or list, `no` or `none`."""
    return value is None or value is False or value in ("", "no", "none", [], {}, ["none"])


def translate(arguments: Arguments) -> tuple[list[Setting], list[Note]]:
    """Translate the arguments.

    Returns:
        The settings, in the order of the config, and a note for every field in the file that has no key.

    Raises:
        UserError: lists all fields whose values cannot be translated.
    """
    settings: list[Setting] = []
    notes: list[Note] = []
    problems = Problems()
    for group in _GROUPS:
        for item in problems.collect("", list, group(arguments)) or ():
            settings.append(item) if isinstance(item, Setting) else notes.append(item)
    problems.refuse()
    translated = {name for setting in settings for name in setting.names} | {note.name for note in notes}
    for name in arguments.changed():
        if name in NOT_NEEDED:
            notes.append(Note(name, NOT_NEEDED[name]))
        elif name not in TRANSLATIONS:
            notes.append(Note(name, "it is new in this version of transformers, and not known here yet"))
        elif name not in translated:
            key, difference = TRANSLATIONS[name]
            if difference:
                notes.append(Note(name, f"here it is {with_note(name)}"))
            else:
                settings.append(Setting(key, arguments.value_as_written(name), (name,)))
    return _one_per_key(settings, notes), notes


def _one_per_key(settings: list[Setting], notes: list[Note]) -> list[Setting]:
    """Keep one setting per key, in the order of the config; a value of the file replaces a default. Notes conflicts."""
    by_key: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda setting: not setting.names):
        first = by_key.setdefault(setting.key, setting)
        if first is setting or not setting.names:
            continue
        if first.value == setting.value:
            by_key[setting.key] = first._replace(names=(*first.names, *setting.names))
        else:
            reason = f"{setting.key} is {shown(first.value)} already, by {', '.join(first.names)}"
            notes += [Note(name, reason) for name in setting.names]
    return [by_key[key] for key in KEYS if key in by_key]


def _run(a: Arguments) -> Iterator[Setting | Note]:
    if a.changed("data_seed"):
        if a["data_seed"] == a["seed"]:
            yield Setting("seed", a["seed"], a.changed("seed", "data_seed"))
        else:
            yield Note("data_seed", f"one seed for all randomness, and here it is {a['seed']}")


def _model(a: Arguments) -> Iterator[Setting | Note]:
    if compiles := a.changed("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        yield Setting("model.compile", True, compiles)
    if a.changed("use_cache"):
        yield Setting("model.overrides", {"use_cache": a["use_cache"]}, ("use_cache",))


def _columns(a: Arguments) -> Iterator[Setting | Note]:
    columns = {
        "text_column_name": "text",
        "label_column_name": "label",
        "text_column": "source",
        "summary_column": "target",
        "image_column_name": "image",
    }
    if names := a.changed(*columns):
        yield Setting("data.columns", {columns[name]: a[name] for name in names}, names)


def _task(a: Arguments) -> Iterator[Setting | Note]:
    """Find the task whose example script has these arguments, and translate them."""
    for task in dict.fromkeys(task for task, _ in TASK_ARGUMENTS.values()):
        names = a.changed(*(name for name, (owner, _) in TASK_ARGUMENTS.items() if owner == task))
        args: dict[str, Any] = {}
        for name in names:
            if example := _ARGUMENT.match(TASK_ARGUMENTS[name][1]):
                argument, entry = example.groups()
                value = not a[name] if argument == "join_texts" else a[name]
                args |= {argument: {**args.get(argument, {}), entry: value} if entry else value}
        if names:
            yield Setting("task.name", task, names)
        if args:
            yield Setting("task.args", args, tuple(name for name in names if TASK_ARGUMENTS[name][1]))
        for name in names:
            key, difference = TRANSLATIONS[name]
            if not TASK_ARGUMENTS[name][1] and not difference:
                yield Setting(key, a[name], (name,))


def _batch(a: Arguments) -> Iterator[Setting | Note]:
    per_device, accumulate = "per_device_train_batch_size", "gradient_accumulation_steps"
    config = a["accelerator_config"]
    if a["split_batches"] or (isinstance(config, dict) and config.get("split_batches")):
        # With split_batches, per_device_train_batch_size counts the rows of all processes.
        yield Setting("batch.size", a[per_device] * a[accumulate], a.changed(per_device, accumulate))
    else:
        yield Setting("batch.per_device", a[per_device], a.changed(per_device))
        yield Setting("batch.accumulate", a[accumulate], a.changed(accumulate))
    if a.changed("auto_find_batch_size"):
        yield Setting("batch.max_tokens", "auto", ("auto_find_batch_size",))


def _length(a: Arguments) -> Iterator[Setting | Note]:
    if a["max_steps"] > 0:
        yield Setting("train.steps", a["max_steps"], a.changed("max_steps"))
        for name in a.changed("num_train_epochs"):
            yield Note(name, "max_steps says how long, and train.steps excludes train.epochs")


def _precision(a: Arguments) -> Iterator[Setting | Note]:
    """Translate precision, gradient clipping, label smoothing and the timeout."""
    if a["bf16"] and a["fp16"]:
        raise UserError("bf16 and fp16 are both true; set one of them to false")
    precision = "bf16" if a["bf16"] else "fp16" if a["fp16"] else "no"
    yield Setting("train.precision", precision, a.changed("bf16", "fp16"))
    yield Setting("train.tf32", bool(a["tf32"]), ("tf32",) if a["tf32"] is not None else ())
    if a.changed("max_grad_norm"):
        yield Setting("train.max_grad_norm", a["max_grad_norm"] if a["max_grad_norm"] > 0 else None, ("max_grad_norm",))
    if a.changed("label_smoothing_factor"):
        yield Setting("loss.args", {"label_smoothing": a["label_smoothing_factor"]}, ("label_smoothing_factor",))
    if a.changed("ddp_timeout"):
        yield Setting("train.timeout_minutes", a["ddp_timeout"] / 60, ("ddp_timeout",))


_DEEPSPEED_STAGES = {0: "none", 1: "zero2", 2: "zero2", 3: "full"}


def _sharding(a: Arguments) -> Iterator[Setting | Note]:
    details = a.changed("fsdp_config", "fsdp_transformer_layer_cls_to_wrap")
    if names := a.changed("fsdp"):
        words = re.findall(r"[^\[\],' ]+", str(a["fsdp"]))
        strategy = next((word.upper() for word in words if word.upper() in FSDP_STRATEGIES), "FULL_SHARD")
        values = dict(FSDP_STRATEGIES[strategy])
        if _read_fsdp_config(a).get("reshard_after_forward") is False:
            values["shard"] = "zero2"
        yield from (Setting(f"parallel.{key}", value, names) for key, value in values.items())
        if "offload" in words and values["shard"] != "none":
            yield Setting("parallel.offload", "weights", names)
        if details:
            yield from _fsdp_config(a, details)
    else:
        yield from (Note(name, "Trainer does not read it without fsdp either") for name in details)
    if a.changed("deepspeed"):
        yield from _deepspeed(a)


def _fsdp_config(a: Arguments, names: tuple[str, ...]) -> Iterator[Setting | Note]:
    if isinstance(a["fsdp_config"], str):
        yield Note("fsdp_config", f"the file {a['fsdp_config']} was not read; parallel.layers names the layers")
    config = _read_fsdp_config(a)
    layers = config.get("transformer_layer_cls_to_wrap") or a["fsdp_transformer_layer_cls_to_wrap"]
    if layers:
        yield Setting("parallel.layers", [layers] if isinstance(layers, str) else list(layers), names)
    if config.get("activation_checkpointing"):
        yield Setting("model.gradient_checkpointing", True, ("fsdp_config",))


def _read_fsdp_config(a: Arguments) -> dict[str, Any]:
    """Return the entries of `fsdp_config` without the prefix of older versions; none if it names a file."""
    config = a["fsdp_config"] if isinstance(a["fsdp_config"], dict) else {}
    return {str(name).removeprefix("fsdp_"): value for name, value in config.items()}


def _deepspeed(a: Arguments) -> Iterator[Setting | Note]:
    config = a["deepspeed"]
    if not isinstance(config, dict):
        yield Note(
            "deepspeed", f"{shown(config)} was not read; set parallel.shard to zero2 for stages 1 and 2, full for 3"
        )
        return
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage not in _DEEPSPEED_STAGES:
        raise UserError(f"deepspeed: zero_optimization.stage is {shown(stage)}; allowed: 0, 1, 2, 3")
    yield Setting("parallel.shard", _DEEPSPEED_STAGES[stage], ("deepspeed",))
    if _DEEPSPEED_STAGES[stage] != "none" and any(
        str(name).startswith("offload") and value for name, value in zero.items()
    ):
        yield Setting("parallel.offload", "weights", ("deepspeed",))


def _optimizer(a: Arguments) -> Iterator[Setting | Note]:
    yield Setting("optimizer.weight_decay", a["weight_decay"], a.changed("weight_decay"))
    optimizer = OPTIMIZERS.get(a["optim"])
    if optimizer is None:
        yield Note("optim", f"{a['optim']} has no name here; optimizer.name may be the dotted path of its class")
        return
    if a.changed("optim"):
        yield Setting("optimizer.name", optimizer.name, a.changed("optim"))

    adam_fields = {"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",)}
    used = {name for argument in optimizer.adam_args for name in adam_fields[argument]}
    changed = a.changed("adam_beta1", "adam_beta2", "adam_epsilon")
    for name in changed:
        if name not in used:
            yield Note(name, f"Trainer's {a['optim']} does not read it either")
    optim_args = _read_optim_args(a["optim_args"] or "")
    for name in optim_args:
        if name not in optimizer.optim_args:
            yield Note("optim_args", f"Trainer's {a['optim']} does not read {name}; see optimizer.args")
    args: dict[str, object] = dict(optimizer.args)
    # AdamW here has the same defaults as TrainingArguments.
    for argument in optimizer.adam_args if optimizer is not ADAMW or changed else ():
        values = [a[name] for name in adam_fields[argument]]
        args[argument] = values if argument == "betas" else values[0]
    args |= {name: value for name, value in optim_args.items() if name in optimizer.optim_args}
    if optimizer.optim_args == ADEMAMIX_ARGS:
        betas = [args.pop("beta1", a["adam_beta1"]), args.pop("beta2", a["adam_beta2"]), args.pop("beta3", 0.9999)]
        args["betas"] = betas
    if a["optim"] in ("schedule_free_adamw", "schedule_free_sgd") and a["warmup_steps"] >= 1:
        args["warmup_steps"] = int(a["warmup_steps"])
    if args:
        names = (*(name for name in changed if name in used), *a.changed("optim_args"))
        yield Setting("optimizer.args", args, names or a.changed("optim"))


def _read_optim_args(text: str) -> dict[str, object]:
    """Parse `momentum=0.9, nesterov=true` into {"momentum": 0.9, "nesterov": True}."""
    pairs = [pair.partition("=") for pair in text.replace(" ", "").split(",") if pair]
    if any(not name or not value for name, _, value in pairs):
        raise UserError(f"optim_args is {shown(text)}; the form is momentum=0.9,nesterov=true")
    return {name: plain(ScalarNode(core_tag(value), value)) for name, _, value in pairs}


def _schedule(a: Arguments) -> Iterator[Setting | Note]:
    warmup = a["warmup_steps"]
    if warmup >= 1 and "warmup_ratio" in a.changed("warmup_steps"):
        raise UserError(f"warmup_ratio is {shown(warmup)}; it is a share of all steps, below 1")
    yield Setting("scheduler.warmup", int(warmup) if warmup >= 1 else warmup, a.changed("warmup_steps"))
    if a.changed("lr_scheduler_kwargs"):
        yield Setting("scheduler.args", _read_mapping(a, "lr_scheduler_kwargs"), ("lr_scheduler_kwargs",))
    by_metric = a["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")
    if by_metric and a.changed("metric_for_best_model", "greater_is_better"):
        yield Setting("scheduler.metric", _best_metric(a), a.changed("metric_for_best_model", "greater_is_better"))


def _read_mapping(a: Arguments, name: str) -> dict[str, object]:
    """Return a mapping, which may be written as a JSON string. Raises UserError for anything else."""
    value = a[name]
    with contextlib.suppress(ValueError, RecursionError):  # the error below shows the text
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise UserError(f"{name} is {shown(value)}; it must be a mapping")
    return value


def _evaluation(a: Arguments) -> Iterator[Setting | Note]:
    names = a.changed("eval_strategy", "eval_steps", "do_eval")
    if a["eval_strategy"] == "steps":
        yield from _interval(a, "evaluate.every", a["eval_steps"] or a["logging_steps"], names)
    elif a["eval_strategy"] == "epoch" or a["do_eval"]:
        yield Setting("evaluate.every", "epoch", names)
    elif names:
        yield Note("eval_steps", "eval_strategy is no; evaluate.every takes a number of steps")


def _checkpoints(a: Arguments) -> Iterator[Setting | Note]:
    names, strategy = a.changed("save_strategy", "save_steps"), a["save_strategy"]
    if names and strategy == "steps":
        yield from _interval(a, "checkpoint.every", a["save_steps"], names)
    elif names:
        yield Setting("checkpoint.every", "never" if strategy == "no" else "epoch", names)
    selects_best = a["load_best_model_at_end"] or strategy == "best"
    if a.changed("save_total_limit") and a["save_total_limit"] > 0:
        limit = a["save_total_limit"]
        keep_last = max(1, limit - 1) if a["load_best_model_at_end"] else limit  # Trainer also counts the best one
        yield Setting("checkpoint.keep_last", keep_last, ("save_total_limit",))
    names = a.changed("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
    if selects_best and a["eval_strategy"] != "no" and strategy != "no":
        yield Setting("checkpoint.best", _best_metric(a), names or ("save_strategy",))
    elif a["lr_scheduler_type"] not in ("reduce_lr_on_plateau", "greedy"):
        for name in names:
            yield Note(name, "no best model is picked from these settings; checkpoint.best would name its metric")


def _best_metric(a: Arguments) -> str:
    """Return the metric for `checkpoint.best`: `eval_accuracy` -> accuracy, `loss` -> -loss, as smaller is better."""
    metric = (a["metric_for_best_model"] or "loss").removeprefix("eval_")
    greater = a["greater_is_better"]
    if greater is None:
        greater = not metric.endswith("loss")
    return metric if greater else f"-{metric}"


def _interval(a: Arguments, key: str, steps: float, names: tuple[str, ...]) -> Iterator[Setting | Note]:
    """Translate an interval. A share of all steps becomes a number of steps, or a share of an epoch."""
    epochs = steps * a["num_train_epochs"]
    if steps >= 1:
        yield Setting(key, int(steps), names)
    elif a["max_steps"] > 0:
        yield Setting(key, math.ceil(steps * a["max_steps"]), names)
    elif epochs <= 1:
        yield Setting(key, "epoch" if epochs == 1 else epochs, names)
    else:
        for name in names:
            yield Note(name, f"it is every {epochs:g} epochs, which {key} cannot say; write a number of steps there")


def _log(a: Arguments) -> Iterator[Setting | Note]:
    names = a.changed("logging_strategy", "logging_steps")
    steps = a["logging_steps"]
    if names and a["logging_strategy"] == "steps" and (steps >= 1 or a["max_steps"] > 0):
        every = int(steps) if steps >= 1 else math.ceil(steps * a["max_steps"])
        yield Setting("log.every", every, names)
    else:
        for name in names:
            yield Note(name, "log.every is a number of steps; evaluations write a row of their own")
    trackers = a["report_to"] if isinstance(a["report_to"], list) else [a["report_to"]]
    if a.changed("report_to"):
        known = [tracker for tracker in trackers if tracker in _TRACKERS]
        if known:
            yield Setting("log.trackers", known, ("report_to",))
        for tracker in (tracker for tracker in trackers if tracker not in known):
            yield Note("report_to", f"{tracker} is no tracker of accelerate; log.trackers takes {', '.join(_TRACKERS)}")


def _hub(a: Arguments) -> Iterator[Setting | Note]:
    names = a.changed("hub_model_id", "push_to_hub_model_id", "push_to_hub_organization")
    repo = a["hub_model_id"] or a["push_to_hub_model_id"]
    if repo is None and (a["push_to_hub"] or names):  # Trainer uses the name of the folder
        repo = PurePath(a["output_dir"] or "").name or "trainer_output"
    if repo is None:
        return
    if a["push_to_hub_organization"] and a["hub_model_id"] is None:
        repo = f"{a['push_to_hub_organization']}/{repo}"
    yield Setting("hub.push", repo, (*a.changed("push_to_hub"), *names))
    if a.changed("hub_private_repo") or a["hub_private_repo"] is False:
        yield Setting("hub.private", a["hub_private_repo"], ("hub_private_repo",))
    elif a["push_to_hub"]:
        yield Note("push_to_hub", "a new repository is private here; hub.private=false makes it public")
    if not a["push_to_hub"]:  # the name is only for trainer.push_to_hub()
        yield Setting("hub.every", "never", names)
        return
    every = "end" if a["hub_strategy"] == "end" or a["save_strategy"] == "no" else "checkpoint"
    yield Setting("hub.every", every, a.changed("hub_strategy") or a.changed("push_to_hub"))
    if every == "checkpoint" and "checkpoint" in a["hub_strategy"]:
        yield Note("hub_strategy", "the weights of each checkpoint are pushed; states of optimizers are not")


_TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")

_GROUPS: tuple[Callable[[Arguments], Iterator[Setting | Note]], ...] = (
    *(_run, _task, _model, _columns, _batch, _length, _precision, _sharding, _optimizer, _schedule, _evaluation),
    *(_checkpoints, _log, _hub),
)
