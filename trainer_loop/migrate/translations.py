"""Suggest keys for an unknown name: a misspelled key, or a name of transformers.TrainingArguments.

Every field of TrainingArguments is in one of the tables `TRANSLATIONS` and `NOT_NEEDED`. So are fields of older
versions, and names that people know from elsewhere. docs/migrate.md is generated from the tables, and
`python -m trainer_loop.migrate` uses them.
"""

from difflib import get_close_matches

from trainer_loop.config.schema import KEYS, SECTIONS

# Fields of TrainingArguments -> the key here, and what differs; if that is empty, the value is copied.
_FIELDS: dict[str, tuple[str, str]] = {
    "output_dir": ("run_dir", ""),
    "run_name": ("log.name", ""),
    "project": ("log.project", ""),
    "seed": ("seed", ""),
    "data_seed": ("seed", "one seed for all randomness"),
    "resume_from_checkpoint": (
        "resume",
        "auto, never or a checkpoint of trainer_loop; a checkpoint of Trainer can be a model.name",
    ),
    # model
    "activation_checkpointing": ("model.gradient_checkpointing", ""),
    "gradient_checkpointing": ("model.gradient_checkpointing", ""),
    "torch_compile": ("model.compile", ""),
    "use_cache": ("model.overrides", "{use_cache: true}"),
    "neftune_noise_alpha": ("model.neftune_alpha", ""),
    # data
    "dataloader_num_workers": ("data.num_workers", ""),
    "do_predict": ("data.test", "scored once, at the end"),
    # batch
    "per_device_train_batch_size": ("batch.per_device", "rows of one microbatch; batch.size: rows of one update"),
    "gradient_accumulation_steps": ("batch.accumulate", "or set only batch.size, the rows of one update"),
    "auto_find_batch_size": ("batch.max_tokens", "auto; microbatches are cut by padded tokens, the update stays"),
    # length of the training and precision
    "num_train_epochs": ("train.epochs", ""),
    "max_steps": ("train.steps", "instead of train.epochs"),
    "bf16": ("train.precision", "bf16"),
    "fp16": ("train.precision", "fp16"),
    "tf32": ("train.tf32", ""),
    "max_grad_norm": ("train.max_grad_norm", "null instead of 0"),
    "ddp_timeout": ("train.timeout_minutes", "minutes instead of seconds"),
    "label_smoothing_factor": ("loss.args", "{label_smoothing: 0.1}"),
    # sharding
    "fsdp": ("parallel.shard", "full, or zero2 for shard_grad_op"),
    "fsdp_config": ("parallel.layers", "a list of class names"),
    "deepspeed": ("parallel.shard", "zero2 for stages 1 and 2, full for stage 3"),
    # optimizer
    "learning_rate": ("optimizer.lr", ""),
    "weight_decay": ("optimizer.weight_decay", ""),
    "optim": ("optimizer.name", "a name of --help optimizer.name, or a dotted path"),
    "optim_args": ("optimizer.args", "a mapping"),
    "adam_beta1": ("optimizer.args", "{betas: [0.9, 0.999]}"),
    "adam_beta2": ("optimizer.args", "{betas: [0.9, 0.999]}"),
    "adam_epsilon": ("optimizer.args", "{eps: 1e-8}"),
    # schedule
    "lr_scheduler_type": ("scheduler.name", ""),
    "lr_scheduler_kwargs": ("scheduler.args", "a mapping"),
    "warmup_steps": ("scheduler.warmup", "below 1: share of all steps; from 1: steps"),
    # evaluation
    "do_eval": ("evaluate.every", "epoch, never or a number of steps"),
    "eval_strategy": ("evaluate.every", "epoch, never or a number of steps"),
    "eval_steps": ("evaluate.every", "a number of steps; below 1 a share of an epoch, not of all steps"),
    "eval_on_start": ("evaluate.at_start", ""),
    "per_device_eval_batch_size": ("evaluate.per_device", ""),
    # checkpoints
    "save_strategy": ("checkpoint.every", "epoch, never or a number of steps; a new best is also saved"),
    "save_steps": ("checkpoint.every", "a number of steps; below 1 a share of an epoch, not of all steps"),
    "save_total_limit": ("checkpoint.keep_last", "the best one is kept too"),
    "load_best_model_at_end": ("checkpoint.best", "the metric that selects the model to export"),
    "metric_for_best_model": ("checkpoint.best", "-loss if smaller is better"),
    "greater_is_better": ("checkpoint.best", "a metric, with - before it if smaller is better"),
    # log
    "logging_strategy": ("log.every", "a number of steps"),
    "logging_steps": ("log.every", "a number of steps"),
    "report_to": ("log.trackers", "a list"),
    # hub
    "push_to_hub": ("hub.push", "the name of the repository"),
    "hub_model_id": ("hub.push", ""),
    "hub_private_repo": ("hub.private", "a new repository is private unless it says false"),
    "hub_strategy": ("hub.every", "end, checkpoint or never; states of optimizers are not pushed"),
}

# Fields of older versions.
_OLD_FIELDS: dict[str, tuple[str, str]] = {
    "overwrite_output_dir": ("resume", "auto continues a run; a new run needs a new run_dir"),
    "logging_dir": ("run_dir", "it contains the logs"),
    "per_gpu_train_batch_size": ("batch.per_device", "rows of one microbatch; batch.size: rows of one update"),
    "adafactor": ("optimizer.name", "adafactor"),
    "warmup_ratio": ("scheduler.warmup", "below 1: share of all steps"),
    "evaluation_strategy": ("evaluate.every", "epoch, never or a number of steps"),
    "evaluate_during_training": ("evaluate.every", "epoch, never or a number of steps"),
    "per_gpu_eval_batch_size": ("evaluate.per_device", ""),
    "push_to_hub_model_id": ("hub.push", "me/imdb-bert, or imdb-bert in your own namespace"),
    "sharded_ddp": ("parallel.shard", "zero2, or full for zero_dp_3"),
    "fsdp_transformer_layer_cls_to_wrap": ("parallel.layers", "a list of class names"),
    "push_to_hub_organization": ("hub.push", "my-lab/imdb-bert"),
}

# Arguments that only one example script of transformers has -> the task, and an example of its argument; if that is
# empty, the argument is a key outside task.args.
TASK_ARGUMENTS: dict[str, tuple[str, str]] = {
    "do_regression": ("sequence_regression", ""),
    "doc_stride": ("question_answering", "{stride: 128}"),
    "max_answer_length": ("question_answering", "{max_answer_tokens: 30}"),
    "version_2_with_negative": ("question_answering", "{null_answers: true}"),
    "null_score_diff_threshold": ("question_answering", "{null_threshold: 0.0}"),
    "source_prefix": ("seq2seq", "{prefix: 'summarize: '}"),
    "max_target_length": ("seq2seq", "{max_target_length: 128}"),
    "summary_column": ("seq2seq", ""),
    "mlm_probability": ("masked_lm", "{mask_probability: 0.15}"),
    "line_by_line": ("masked_lm", "{join_texts: false}"),
    "block_size": ("causal_lm", ""),
    "fim_rate": ("causal_lm", "{fim: {rate: 0.5}}"),
    "fim_spm_rate": ("causal_lm", "{fim: {spm_rate: 0.5}}"),
    "fim_prefix_token": ("causal_lm", "{fim: {prefix_token: <fim_prefix>}}"),
    "fim_suffix_token": ("causal_lm", "{fim: {suffix_token: <fim_suffix>}}"),
    "fim_middle_token": ("causal_lm", "{fim: {middle_token: <fim_middle>}}"),
    "image_column_name": ("image_classification", ""),
    "train_val_split": ("image_classification", ""),
}

# Other arguments of these scripts, of Trainer itself, and of other trainers.
_OTHER_NAMES: dict[str, tuple[str, str]] = {
    **{name: ("task.args", example) for name, (_, example) in TASK_ARGUMENTS.items() if example},
    "model_name_or_path": ("model.name", ""),
    "model_type": ("model.type", ""),
    "tokenizer_name": ("model.tokenizer", ""),
    "config_overrides": ("model.overrides", "a mapping"),
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
    "generation_max_length": ("evaluate.generate.max_new_tokens", ""),
    "generation_num_beams": ("evaluate.generate.num_beams", ""),
    "block_size": ("data.max_length", ""),
    "max_source_length": ("data.max_length", ""),
    "val_max_target_length": ("evaluate.generate.max_new_tokens", ""),
    "num_beams": ("evaluate.generate.num_beams", ""),
    "train_val_split": ("data.validation_fraction", ""),
    "do_regression": ("task.name", "sequence_regression"),
    "text_column": ("data.columns", "{source: article}"),
    "summary_column": ("data.columns", "{target: highlights}"),
    "image_column_name": ("data.columns", "{image: img}"),
    "chat_template_path": ("model.chat_template", ""),
    "lora_r": ("model.lora.r", ""),
    "lora_alpha": ("model.lora.alpha", ""),
    "lora_dropout": ("model.lora.dropout", ""),
    "lora_target_modules": ("model.lora.target_modules", ""),
    "text_column_name": ("data.columns", "{text: review}"),
    "text_column_names": ("data.columns", "{text: sentence1, text_pair: sentence2}"),
    "label_column_name": ("data.columns", "{label: stars}"),
    # keys of version 0.1
    "text": ("data.columns", "{text: review}"),
    "text_pair": ("data.columns", "{text_pair: sentence2}"),
    "label": ("data.columns", "{label: stars}"),
    "preprocessing_num_workers": ("data.num_workers", "processes that prepare batches; tokenising uses none"),
    "batch_size": ("batch.size", "rows of one update over all processes"),
    "train_batch_size": ("batch.size", "rows of one update over all processes"),
    "num_epochs": ("train.epochs", ""),
    "num_train_steps": ("train.steps", ""),
    "mixed_precision": ("train.precision", ""),
    "allow_tf32": ("train.tf32", ""),
    "max_norm": ("train.max_grad_norm", ""),
    "gradient_clip_val": ("train.max_grad_norm", ""),
    "num_warmup_steps": ("scheduler.warmup", "from 1: steps"),
    "compute_metrics": ("evaluate.metrics", "names that evaluate knows"),
    "metric_name": ("evaluate.metrics", ""),
}

TRANSLATIONS: dict[str, tuple[str, str]] = {**_FIELDS, **_OLD_FIELDS, **_OTHER_NAMES}

_NO_TENSOR_PARALLELISM = "parallel.shard spreads a model over the processes; there is no tensor parallelism"
_BY_LENGTH = "microbatches are cut by length anyway; batch.order=window makes whole batches of similar length"
_DATA_PARALLEL = "the loop sets up DistributedDataParallel itself"
_TOKEN = "a token does not belong in a file: set HF_TOKEN, or run hf auth login"
_NO_LOGITS_STORED = "one prediction and one label of each row are stored, and no logits"
_LOADER = "batches are prepared ahead by data.num_workers processes, pinned beside a GPU, in their order"

# Fields of TrainingArguments without a key -> the reason, and what to do instead.
_FIELDS_NOT_NEEDED: dict[str, str] = {
    "do_train": "a run always trains; data.test is scored at the end",
    # model
    "activation_checkpointing_kwargs": "model.gradient_checkpointing recomputes every layer, with use_reentrant=False",
    "gradient_checkpointing_kwargs": "model.gradient_checkpointing recomputes every layer, with use_reentrant=False",
    "torch_compile_backend": "model.compile takes torch's default",
    "torch_compile_mode": "model.compile takes torch's default",
    "use_liger_kernel": "a language model's logits are made in chunks anyway; model.compile=true fuses the rest",
    "liger_kernel_config": "a language model's logits are made in chunks anyway; model.compile=true fuses the rest",
    # data
    "remove_unused_columns": "only the columns named under data are read",
    "label_names": "the task knows what its targets are; the names of the classes are data.label_names",
    "train_sampling_strategy": f"rows are shuffled by seed; {_BY_LENGTH}",
    "length_column_name": "lengths are counted after tokenisation",
    "dataloader_drop_last": "every row is trained exactly once an epoch, the last batch too",
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    # the update
    "average_tokens_across_devices": "the loss is always divided by the targets of the whole update",
    "bf16_full_eval": "evaluation has the precision of training, train.precision",
    "fp16_full_eval": "evaluation has the precision of training, train.precision",
    "full_determinism": "all randomness is a function of seed and step; torch chooses the kernels",
    "optim_target_modules": "GaLore and APOLLO are not supported; optimizer.groups sets options of parameter groups",
    "torch_empty_cache_steps": "a step that runs out of memory is cut smaller; batch.max_tokens bounds it beforehand",
    # evaluation
    "eval_delay": "the first evaluation is the first that is due; a larger evaluate.every means fewer evaluations",
    "prediction_loss_only": _NO_LOGITS_STORED,
    "eval_do_concat_batches": _NO_LOGITS_STORED,
    "eval_use_gather_object": _NO_LOGITS_STORED,
    "eval_accumulation_steps": _NO_LOGITS_STORED,
    "include_for_metrics": "a metric that is a function asks for outputs of predict, such as probabilities",
    "batch_eval_metrics": _NO_LOGITS_STORED,
    # checkpoints
    "save_only_model": "a checkpoint always resumes; checkpoint.every=never leaves the exported model alone",
    "save_on_each_node": "one checkpoint for all processes, in a run_dir that every machine sees",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint first, and the same command resumes from it",
    "ignore_data_skip": "resuming skips no data: the order is computed from seed and step",
    "restore_callback_states_from_checkpoint": "there are no callbacks; all that counts is in the checkpoint",
    "hub_token": _TOKEN,
    "hub_always_push": "a push that is due while another runs starts after it, with the newest weights",
    "hub_revision": "pushes go to the main branch",
    # log
    "logging_first_step": "rows are written every log.every steps; 1 includes the first",
    "log_on_each_node": "only process 0 logs",
    "log_level": "the loop prints its own messages; other packages print only errors",
    "log_level_replica": "only process 0 logs",
    "logging_nan_inf_filter": "a loss that is not finite ends the run and says where, or see train.on_nonfinite",
    "include_num_input_tokens_seen": "tokens a second are always in metrics.jsonl",
    "disable_tqdm": "without a terminal there is no progress bar",
    "trackio_space_id": "log.trackers: [trackio] logs locally",
    "trackio_bucket_id": "log.trackers: [trackio] logs locally",
    "trackio_static_space_id": "log.trackers: [trackio] logs locally",
    "debug": "the first step whose loss or gradient is not finite ends the run with a message",
    "skip_memory_metrics": "python -m benchmarks.memory measures memory",
    # devices and processes
    "use_cpu": "devices are chosen by accelerate: accelerate launch --cpu",
    "local_rank": "processes are started by accelerate launch",
    "accelerator_config": "each row is trained and scored once, in an order that the seed determines",
    "parallelism_config": _NO_TENSOR_PARALLELISM,
    "ddp_backend": "accelerate chooses it by the device",
    "ddp_find_unused_parameters": _DATA_PARALLEL,
    "ddp_bucket_cap_mb": _DATA_PARALLEL,
    "ddp_broadcast_buffers": _DATA_PARALLEL,
    "ddp_static_graph": _DATA_PARALLEL,
}

# Fields of older versions.
_OLD_FIELDS_NOT_NEEDED: dict[str, str] = {
    "group_by_length": _BY_LENGTH,
    "no_cuda": "devices are chosen by accelerate: accelerate launch --cpu",
    "use_mps_device": "devices are chosen by accelerate",
    "use_ipex": "model.attention=auto uses fast attention and dropout on CPUs",
    "jit_mode_eval": "model.compile=true compiles",
    "torchdynamo": "model.compile=true compiles",
    "fp16_backend": "mixed precision is torch's own",
    "half_precision_backend": "mixed precision is torch's own",
    "fp16_opt_level": "mixed precision is torch's own",
    "save_safetensors": "weights are always saved as safetensors",
    "split_batches": "batch.size counts the rows of one update over all processes",
    "dispatch_batches": "every process reads its own rows",
    "include_inputs_for_metrics": "a metric that is a function asks for outputs of predict, such as probabilities",
    "include_tokens_per_second": "tokens a second are always in metrics.jsonl",
    "use_legacy_prediction_loop": "there is only one evaluation loop",
    "past_index": "no output of one batch is passed to the next",
    "ray_scope": "hyperparameters are searched by a script around the command",
    "mp_parameters": _NO_TENSOR_PARALLELISM,
    "xpu_backend": "accelerate chooses it by the device",
    "fsdp_min_num_params": "the model, or parallel.layers, names the layers that are gathered one by one",
    "tpu_num_cores": "devices are chosen by accelerate",
    "tpu_metrics_debug": "devices are chosen by accelerate",
    "push_to_hub_token": _TOKEN,
}

# Fields of Seq2SeqTrainingArguments, and arguments of the example scripts.
_OTHER_NAMES_NOT_NEEDED: dict[str, str] = {
    "sortish_sampler": _BY_LENGTH,
    "predict_with_generate": "a task with a target text always generates; metrics compare the generated texts",
    "generation_config": "it is part of the model and is saved with it",
    "overwrite_cache": "tokenised data is cached under a key made from its inputs",
    "pad_to_max_length": "rows are padded to the longest of their microbatch",
    "ignore_pad_token_for_loss": "padding is never a target",
    "fim_pad_token": "texts that are split keep their length without padding",
    "truncate_or_pad": "texts that are split keep their length",
    "n_best_size": "the best answer is searched among all spans of all windows",
    "use_fast_tokenizer": "fast tokenizers are always used",
    "low_cpu_mem_usage": "weights are loaded once, into the model",
    "shuffle_train_dataset": "rows are shuffled by the seed and the epoch",
    "remove_columns": "only the columns named under data.columns are read",
    "ignore_mismatched_sizes": "a head of another size gets new weights, and this is reported",
}

NOT_NEEDED: dict[str, str] = {**_FIELDS_NOT_NEEDED, **_OLD_FIELDS_NOT_NEEDED, **_OTHER_NAMES_NOT_NEEDED}

FIELDS = frozenset({*_FIELDS, *_FIELDS_NOT_NEEDED})
OLD_FIELDS = frozenset({*_OLD_FIELDS, *_OLD_FIELDS_NOT_NEEDED})
OTHER_NAMES = frozenset({*_OTHER_NAMES, *_OTHER_NAMES_NOT_NEEDED})


_KEYS_BY_LAST_PART: dict[str, list[str]] = {}
for _name in KEYS:
    _KEYS_BY_LAST_PART.setdefault(_name.rpartition(".")[2], []).append(_name)


def describe_unknown(name: str) -> str:
    """Return a sentence for an unknown key, with the keys that the user may have meant."""
    last = name.rpartition(".")[2]
    if last in NOT_NEEDED and last not in _KEYS_BY_LAST_PART:
        return f"there is no key {name}: {NOT_NEEDED[last]}"
    meant = meant_keys(name)
    if not meant:
        return f"there is no key {name}; --help lists all keys"
    if last in TRANSLATIONS and meant == [TRANSLATIONS[last][0]]:
        return f"there is no key {name}; here it is {with_note(last)}"
    return f"there is no key {name}; did you mean {' or '.join(meant)}?"


def meant_keys(name: str) -> list[str]:
    """Return the keys or sections that an unknown name may mean: at most four, the most likely first."""
    last = name.rpartition(".")[2]
    same_last_part = _KEYS_BY_LAST_PART.get(last, [])
    if 1 <= len(same_last_part) <= 4:
        return same_last_part
    if last in TRANSLATIONS:
        return [TRANSLATIONS[last][0]]
    if same_last_part:  # many keys end with name, every or args: the section decides
        return get_close_matches(name, same_last_part, n=1, cutoff=0.6) or same_last_part[:3]
    nearest = get_close_matches(name, [*SECTIONS, *KEYS], n=2, cutoff=0.75)
    by_name = nearest[:1] if nearest and nearest[0] in SECTIONS else [key for key in nearest if key in KEYS]
    by_translation = [TRANSLATIONS[part][0] for part in get_close_matches(last, TRANSLATIONS, n=1, cutoff=0.85)]
    close_parts = get_close_matches(last, _KEYS_BY_LAST_PART, n=1, cutoff=0.75)
    by_last_part = [key for part in close_parts for key in _KEYS_BY_LAST_PART[part]]
    return by_name or list(dict.fromkeys([*by_translation, *by_last_part]))[:3]


def with_note(name: str) -> str:
    """Return the key of a name in `TRANSLATIONS`, and what differs: `bf16` -> `train.precision (bf16)`."""
    key, note = TRANSLATIONS[name]
    return f"{key} ({note})" if note else key
