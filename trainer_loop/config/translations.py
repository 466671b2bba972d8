"""What a name that is no key was meant to be: a key spelled otherwise, or a name of transformers.TrainingArguments."""

from difflib import get_close_matches

from trainer_loop.config.schema import KEYS, SECTIONS

# Names of TrainingArguments and of the example scripts of transformers -> the key here, then what differs.
TRANSLATIONS: dict[str, tuple[str, str]] = {
    "output_dir": ("run_dir", ""),
    "run_name": ("run_dir", "its last part names the run"),
    "data_seed": ("seed", "one seed for everything random"),
    "resume_from_checkpoint": ("resume", "auto, never or a checkpoint's path"),
    "overwrite_output_dir": ("resume", "auto goes on with a run; a new run takes a new run_dir"),
    # model
    "model_name_or_path": ("model.name", ""),
    "model_type": ("model.type", ""),
    "tokenizer_name": ("model.tokenizer", ""),
    "config_overrides": ("model.overrides", "a mapping"),
    "activation_checkpointing": ("model.gradient_checkpointing", ""),
    "use_cache": ("model.overrides", "{use_cache: false}"),
    # data
    "dataset_name": ("data.name", ""),
    "dataset_config_name": ("data.config", ""),
    "train_file": ("data.train", ""),
    "validation_file": ("data.validation", ""),
    "test_file": ("data.test", ""),
    "validation_split_percentage": ("data.validation_fraction", "a share: 5 percent is 0.05"),
    "max_train_samples": ("data.limit.train", ""),
    "max_eval_samples": ("data.limit.validation", ""),
    "max_predict_samples": ("data.limit.test", ""),
    "max_seq_length": ("data.max_length", ""),
    "block_size": ("data.max_length", ""),
    "text_column_name": ("data.text", ""),
    "text_column_names": ("data.text", "the second column is data.text_pair"),
    "label_column_name": ("data.label", ""),
    "preprocessing_num_workers": ("data.num_workers", ""),
    "dataloader_num_workers": ("data.num_workers", ""),
    # batch
    "batch_size": ("batch.size", "rows of one update over all processes"),
    "train_batch_size": ("batch.size", "rows of one update over all processes"),
    "per_device_train_batch_size": ("batch.per_device", "rows of one microbatch; batch.size is what one update sees"),
    "per_gpu_train_batch_size": ("batch.per_device", "rows of one microbatch; batch.size is what one update sees"),
    "gradient_accumulation_steps": ("batch.accumulate", "or say batch.size alone, the rows of one update"),
    "auto_find_batch_size": ("batch.max_tokens", "microbatches are cut by padded tokens; the update stays as it is"),
    # length of the training and precision
    "num_train_epochs": ("train.epochs", ""),
    "num_epochs": ("train.epochs", ""),
    "max_steps": ("train.steps", ""),
    "num_train_steps": ("train.steps", ""),
    "bf16": ("train.precision", "bf16"),
    "fp16": ("train.precision", "fp16"),
    "mixed_precision": ("train.precision", ""),
    "allow_tf32": ("train.tf32", ""),
    "torch_compile": ("model.compile", ""),
    "max_norm": ("train.max_grad_norm", ""),
    "gradient_clip_val": ("train.max_grad_norm", ""),
    "label_smoothing_factor": ("loss.args", "{label_smoothing: 0.1}"),
    # optimizer
    "learning_rate": ("optimizer.lr", ""),
    "optim": ("optimizer.name", "a name of --help optimizer.name, or a dotted path"),
    "optim_args": ("optimizer.args", "a mapping"),
    "adafactor": ("optimizer.name", "adafactor"),
    "adam_beta1": ("optimizer.args", "{betas: [0.9, 0.999]}"),
    "adam_beta2": ("optimizer.args", "{betas: [0.9, 0.999]}"),
    "adam_epsilon": ("optimizer.args", "{eps: 1e-8}"),
    # schedule
    "lr_scheduler_type": ("scheduler.name", ""),
    "lr_scheduler_kwargs": ("scheduler.args", "a mapping"),
    "warmup_steps": ("scheduler.warmup", "from 1: steps"),
    "num_warmup_steps": ("scheduler.warmup", "from 1: steps"),
    "warmup_ratio": ("scheduler.warmup", "below 1: share of all steps"),
    # evaluation
    "do_eval": ("evaluate.every", "epoch, never or a number of steps"),
    "eval_strategy": ("evaluate.every", "epoch, never or a number of steps"),
    "evaluation_strategy": ("evaluate.every", "epoch, never or a number of steps"),
    "evaluate_during_training": ("evaluate.every", "epoch, never or a number of steps"),
    "eval_steps": ("evaluate.every", "a number of steps"),
    "eval_on_start": ("evaluate.at_start", ""),
    "per_device_eval_batch_size": ("evaluate.per_device", ""),
    "per_gpu_eval_batch_size": ("evaluate.per_device", ""),
    "compute_metrics": ("evaluate.metrics", "names known to evaluate"),
    "metric_name": ("evaluate.metrics", ""),
    "do_predict": ("data.test", "scored once, at the end"),
    # checkpoints
    "save_strategy": ("checkpoint.every", "epoch, never or a number of steps"),
    "save_steps": ("checkpoint.every", "a number of steps"),
    "save_total_limit": ("checkpoint.keep_last", "the best one is kept beside them"),
    "load_best_model_at_end": ("checkpoint.best", "the metric that picks the model to export"),
    "metric_for_best_model": ("checkpoint.best", "-loss where smaller is better"),
    "greater_is_better": ("checkpoint.best", "a metric with - before it where smaller is better"),
    # log
    "logging_strategy": ("log.every", "a number of steps"),
    "logging_steps": ("log.every", ""),
    "report_to": ("log.trackers", "a list"),
    "logging_dir": ("run_dir", "the logs lie in it"),
}

# Names of TrainingArguments that need no key -> why.
NOT_NEEDED: dict[str, str] = {
    "do_train": "this command always trains; data.test is scored at the end",
    "remove_unused_columns": "only the columns named under data are read",
    "group_by_length": "microbatches are cut by length anyway; batch.order=window makes whole batches of like length",
    "train_sampling_strategy": "microbatches are cut by length; batch.order=window makes batches of like length",
    "length_column_name": "lengths are counted after tokenisation",
    "dataloader_drop_last": "every row is trained exactly once an epoch, the last batch too",
    "average_tokens_across_devices": "the loss is always divided by the targets of the whole update",
    "ignore_data_skip": "resuming skips no data: the order is computed from seed and step",
    "eval_accumulation_steps": "metrics keep sums, so memory does not grow with the evaluation set",
    "logging_nan_inf_filter": "a loss that is not finite ends the run and says where",
    "disable_tqdm": "without a terminal there is no progress bar",
    "use_cpu": "devices are chosen by accelerate: accelerate launch --cpu",
    "no_cuda": "devices are chosen by accelerate: accelerate launch --cpu",
    "local_rank": "processes are started by accelerate launch",
    "deepspeed": "distributed training is set up by accelerate launch --config_file",
    "fsdp": "distributed training is set up by accelerate launch --config_file",
    "fsdp_config": "distributed training is set up by accelerate launch --config_file",
    "parallelism_config": "distributed training is set up by accelerate launch --config_file",
    "accelerator_config": "distributed training is set up by accelerate launch --config_file",
    "ddp_backend": "distributed training is set up by accelerate launch --config_file",
    "push_to_hub": "the model is saved under run_dir; hf upload publishes it",
    "hub_model_id": "the model is saved under run_dir; hf upload publishes it",
}


_KEYS_BY_LAST_PART: dict[str, list[str]] = {
    last: [key.name for key in KEYS.values() if key.last_part == last]
    for last in dict.fromkeys(key.last_part for key in KEYS.values())
}


def describe_unknown(name: str) -> str:
    """One sentence about a name that is no key: what it was meant to be, as far as can be told."""
    last = name.rpartition(".")[2]
    if last in NOT_NEEDED and last not in _KEYS_BY_LAST_PART:
        return f"there is no key {name}, and none is needed: {NOT_NEEDED[last]}"
    meant = meant_keys(name)
    if not meant:
        return f"there is no key {name}; --help lists all keys"
    if last in TRANSLATIONS and meant == [TRANSLATIONS[last][0]]:
        return f"there is no key {name}; here it is {with_note(last)}"
    return f"there is no key {name}; did you mean {' or '.join(meant)}?"


def meant_keys(name: str) -> list[str]:
    """The keys or sections, likeliest first and three at most, that a name which is no key may have meant."""
    last = name.rpartition(".")[2]
    same_last_part = _KEYS_BY_LAST_PART.get(last, [])
    if 1 <= len(same_last_part) <= 3:
        return same_last_part
    if last in TRANSLATIONS:
        return [TRANSLATIONS[last][0]]
    if same_last_part:  # many keys end with name, every or args: the section decides
        return get_close_matches(name, same_last_part, n=1, cutoff=0.6) or same_last_part[:3]
    by_name = get_close_matches(name, SECTIONS, n=1, cutoff=0.75) or get_close_matches(name, KEYS, n=2, cutoff=0.75)
    by_translation = [TRANSLATIONS[part][0] for part in get_close_matches(last, TRANSLATIONS, n=1, cutoff=0.85)]
    close_parts = get_close_matches(last, _KEYS_BY_LAST_PART, n=1, cutoff=0.75)
    by_last_part = [key for part in close_parts for key in _KEYS_BY_LAST_PART[part]]
    return by_name or list(dict.fromkeys([*by_translation, *by_last_part]))[:3]


def with_note(name: str) -> str:
    """The key that a known name is here, and what differs: `bf16` -> `train.precision (bf16)`."""
    key, note = TRANSLATIONS[name]
    return f"{key} ({note})" if note else key
