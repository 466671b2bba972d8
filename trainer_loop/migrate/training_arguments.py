"""Values of transformers.TrainingArguments -> keys of the config with their values here.

Which key a field is, stands in translations.py. Here are the fields whose values change on the way, a function for
those that belong together; what no function has taken is copied, or told as a note.
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
from trainer_loop.migrate.trainer_optimizers import ADAMW, ADEMAMIX_TAKES, OPTIMIZERS
from trainer_loop.migrate.translations import NOT_NEEDED, TASK_ARGUMENTS, TRANSLATIONS, with_note
from trainer_loop.parallel.accelerate_file import FSDP_STRATEGIES


class Setting(NamedTuple):
    """A key with its value, and the fields it comes from; none: the default of TrainingArguments, which is not ours."""

    key: str
    value: object
    names: tuple[str, ...] = ()


class Note(NamedTuple):
    """Why a field that was given has no key here, and what to do."""

    name: str
    text: str


# What to_json_string writes for a field that nobody set, where that is not the default of the class.
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

# Fields of older versions whose values mean the same under the name of today.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",
}
# Switches of older versions -> the field of today, and its value where they were true.
_SWITCHES = {"adafactor": ("optim", "adafactor"), "evaluate_during_training": ("eval_strategy", "steps")}
_ARGUMENT = re.compile(r"\{(\w+): (?:\{(\w+):)?")  # of a task, and its entry: `fim` and `rate` of `{fim: {rate: 0.5}}`


class Arguments:
    """What was given, under the names of today, over the defaults of TrainingArguments."""

    def __init__(self, given: Mapping[str, Any], *, defaults: Mapping[str, Any]):
        self._defaults = defaults
        self._given = dict(given)
        self._as_written: dict[str, str] = {}  # the name of today -> the older one that was given
        for old, new in RENAMED.items():
            self._rename(old, new, given.get(old))
        for old, (new, value) in _SWITCHES.items():
            self._rename(old, new, value if given.get(old) is True else None)

    def _rename(self, old: str, new: str, value: object) -> None:
        """What is given under the name of today holds."""
        if not self._is_default(old, value) and not self.changed(new):
            self._given[new] = value
            self._as_written[new] = old
            self._given.pop(old, None)

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name, self._defaults.get(name))

    def changed(self, *names: str) -> tuple[str, ...]:
        """Those of the names, or of all, whose values are not their defaults, as they were written."""
        return tuple(
            self._as_written.get(name, name)
            for name in names or self._given
            if name in self._given and not self._is_default(name, self._given[name])
        )

    def value_as_written(self, written: str) -> object:
        """The value of a field by the name that was given."""
        return self[next((new for new, old in self._as_written.items() if old == written), written)]

    def _is_default(self, name: str, value: object) -> bool:
        default, written = self._defaults.get(name), _WRITTEN_DEFAULTS.get(name)
        if isinstance(value, dict) and isinstance(written, dict):
            return all(part in written and written[part] == given for part, given in value.items())
        if name in _WRITTEN_DEFAULTS and value == written:
            return True
        return value == default or (_is_empty(value) and _is_empty(default))


def _is_empty(value: object) -> bool:
    """Whether nothing is said: null, an empty text or list, false, or a word for it."""
    return value is None or value is False or value in ("", "no", "none", [], {}, ["none"])


def translate(arguments: Arguments) -> tuple[list[Setting], list[Note]]:
    """The keys, in the order of the config, and a note for every field that was given and has none.

    Raises UserError with all fields whose values nothing can be made of.
    """
    settings: list[Setting] = []
    notes: list[Note] = []
    problems = Problems()
    for group in _GROUPS:
        for item in problems.collect("", list, group(arguments)) or ():
            settings.append(item) if isinstance(item, Setting) else notes.append(item)
    problems.refuse()
    taken = {name for setting in settings for name in setting.names} | {note.name for note in notes}
    for name in arguments.changed():
        if name in NOT_NEEDED:
            notes.append(Note(name, NOT_NEEDED[name]))
        elif name not in TRANSLATIONS:
            notes.append(Note(name, "it is new in this version of transformers, and not known here yet"))
        elif name not in taken:
            key, difference = TRANSLATIONS[name]
            if difference:
                notes.append(Note(name, f"here it is {with_note(name)}"))
            else:
                settings.append(Setting(key, arguments.value_as_written(name), (name,)))
    return _one_per_key(settings, notes), notes


def _one_per_key(settings: list[Setting], notes: list[Note]) -> list[Setting]:
    """In the order of the config; what was given takes the place of a default, what differs is noted."""
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
            yield Note("data_seed", f"one seed for everything random, and here it is {a['seed']}")


def _model(a: Arguments) -> Iterator[Setting | Note]:
    if compiles := a.changed("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        yield Setting("model.compile", True, compiles)
    if a.changed("use_cache"):
        yield Setting("model.overrides", {"use_cache": a["use_cache"]}, ("use_cache",))


def _columns(a: Arguments) -> Iterator[Setting | Note]:
    own = {
        "text_column_name": "text",
        "label_column_name": "label",
        "text_column": "source",
        "summary_column": "target",
        "image_column_name": "image",
    }
    if given := a.changed(*own):
        yield Setting("data.columns", {own[name]: a[name] for name in given}, given)


def _task(a: Arguments) -> Iterator[Setting | Note]:
    """The task whose script has such arguments, and its own arguments."""
    for task in dict.fromkeys(task for task, _ in TASK_ARGUMENTS.values()):
        given = a.changed(*(name for name, (of, _) in TASK_ARGUMENTS.items() if of == task))
        args: dict[str, Any] = {}
        for name in given:
            if example := _ARGUMENT.match(TASK_ARGUMENTS[name][1]):
                argument, entry = example.groups()
                value = not a[name] if argument == "join_texts" else a[name]
                args |= {argument: {**args.get(argument, {}), entry: value} if entry else value}
        if given:
            yield Setting("task.name", task, given)
        if args:
            yield Setting("task.args", args, tuple(name for name in given if TASK_ARGUMENTS[name][1]))
        for name in given:
            key, difference = TRANSLATIONS[name]
            if not TASK_ARGUMENTS[name][1] and not difference:
                yield Setting(key, a[name], (name,))


def _batch(a: Arguments) -> Iterator[Setting | Note]:
    per_device, accumulate = "per_device_train_batch_size", "gradient_accumulation_steps"
    config = a["accelerator_config"]
    if a["split_batches"] or (isinstance(config, dict) and config.get("split_batches")):
        # per_device_train_batch_size counts the rows of all processes then.
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


def _numbers(a: Arguments) -> Iterator[Setting | Note]:
    """Precision, the bound on gradients, and the loss."""
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
        chosen = next((word.upper() for word in words if word.upper() in FSDP_STRATEGIES), "FULL_SHARD")
        values = dict(FSDP_STRATEGIES[chosen])
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
    """Its entries without the prefix that older versions have; none where it names a file."""
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
    chosen = OPTIMIZERS.get(a["optim"])
    if chosen is None:
        yield Note("optim", f"{a['optim']} has no name here; optimizer.name may be the dotted path of its class")
        return
    if a.changed("optim"):
        yield Setting("optimizer.name", chosen.name, a.changed("optim"))

    adam = {"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",)}
    read = {name for argument in chosen.adam for name in adam[argument]}
    given = a.changed("adam_beta1", "adam_beta2", "adam_epsilon")
    for name in given:
        if name not in read:
            yield Note(name, f"Trainer's {a['optim']} does not read it either")
    optim_args = _read_optim_args(a["optim_args"] or "")
    for name in optim_args:
        if name not in chosen.takes:
            yield Note("optim_args", f"Trainer's {a['optim']} does not read {name}; see optimizer.args")
    args: dict[str, object] = dict(chosen.args)
    # AdamW's own defaults are those of TrainingArguments.
    for argument in chosen.adam if chosen is not ADAMW or given else ():
        values = [a[name] for name in adam[argument]]
        args[argument] = values if argument == "betas" else values[0]
    args |= {name: value for name, value in optim_args.items() if name in chosen.takes}
    if chosen.takes == ADEMAMIX_TAKES:
        betas = [args.pop("beta1", a["adam_beta1"]), args.pop("beta2", a["adam_beta2"]), args.pop("beta3", 0.9999)]
        args["betas"] = betas
    if a["optim"] in ("schedule_free_adamw", "schedule_free_sgd") and a["warmup_steps"] >= 1:
        args["warmup_steps"] = int(a["warmup_steps"])
    if args:
        names = (*(name for name in given if name in read), *a.changed("optim_args"))
        yield Setting("optimizer.args", args, names or a.changed("optim"))


def _read_optim_args(text: str) -> dict[str, object]:
    """`momentum=0.9, nesterov=true` -> {"momentum": 0.9, "nesterov": True}."""
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
    """A field that may be written as JSON in a text."""
    value = a[name]
    with contextlib.suppress(ValueError, RecursionError):  # told below, with the text as it is
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
    picks = a["load_best_model_at_end"] or strategy == "best"
    if a.changed("save_total_limit") and a["save_total_limit"] > 0:
        limit = a["save_total_limit"]
        kept = max(1, limit - 1) if a["load_best_model_at_end"] else limit  # Trainer counts the best one, too
        yield Setting("checkpoint.keep_last", kept, ("save_total_limit",))
    names = a.changed("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
    if picks and a["eval_strategy"] != "no" and strategy != "no":
        yield Setting("checkpoint.best", _best_metric(a), names or ("save_strategy",))
    elif a["lr_scheduler_type"] not in ("reduce_lr_on_plateau", "greedy"):
        for name in names:
            yield Note(name, "no best model is picked from these settings; checkpoint.best would name its metric")


def _best_metric(a: Arguments) -> str:
    """`eval_accuracy` -> accuracy, `loss` -> -loss: smaller is better where the sign says so."""
    metric = (a["metric_for_best_model"] or "loss").removeprefix("eval_")
    greater = a["greater_is_better"]
    if greater is None:
        greater = not metric.endswith("loss")
    return metric if greater else f"-{metric}"


def _interval(a: Arguments, key: str, steps: float, names: tuple[str, ...]) -> Iterator[Setting | Note]:
    """Steps between two occasions; a share of all steps becomes steps, or a share of an epoch."""
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
    if repo is None and (a["push_to_hub"] or names):  # Trainer takes the name of the folder
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
    if not a["push_to_hub"]:  # the name is for trainer.push_to_hub() then
        yield Setting("hub.every", "never", names)
        return
    every = "end" if a["hub_strategy"] == "end" or a["save_strategy"] == "no" else "checkpoint"
    yield Setting("hub.every", every, a.changed("hub_strategy") or a.changed("push_to_hub"))
    if every == "checkpoint" and "checkpoint" in a["hub_strategy"]:
        yield Note("hub_strategy", "the weights of each checkpoint are pushed; states of optimizers are not")


_TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")

_GROUPS: tuple[Callable[[Arguments], Iterator[Setting | Note]], ...] = (
    *(_run, _task, _model, _columns, _batch, _length, _numbers, _sharding, _optimizer, _schedule, _evaluation),
    *(_checkpoints, _log, _hub),
)
