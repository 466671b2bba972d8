"""The section `model` of the config: load config and tokenizer, and check that model, data and task fit together."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from trainer_loop.data.processors import (
    load_image_processor,
    load_tokenizer,
    make_image_processor,
    read_chat_template,
    train_tokenizer,
)
from trainer_loop.errors import Problems, UserError
from trainer_loop.models.adapters import AdapterPlan, plan_lora, plan_peft
from trainer_loop.models.config import (
    check_model_config,
    count_tabled_positions,
    count_tokens,
    find_model,
    fit_model_config,
    load_model_config,
    make_empty_model,
)
from trainer_loop.models.weight_files import check_weight_files
from trainer_loop.optim.groups import GroupRule, check_patterns
from trainer_loop.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A `model` section. All fields except the last two are its keys. `plan_model` checks it."""

    name: str | None
    type: str | None
    tokenizer: str | None
    chat_template: str | None
    vocab_size: int
    from_scratch: bool
    overrides: Mapping[str, Any]
    attention: str
    packing: bool
    compile: bool
    quantize: str | None
    neftune_alpha: float | None
    gradient_checkpointing: bool
    lora: Mapping[str, Any]
    peft: Mapping[str, Any]
    trust_remote_code: bool
    given: nn.Module | None  # a model object that the user passes instead of `name` or `type`
    adapter: AdapterPlan | None = None  # from `lora` or `peft`

    @property
    def has_foreign_processor(self) -> bool:
        """Whether the tokenizer or image processor comes from elsewhere than the model named in the config."""
        return self.tokenizer is not None or self.given is not None

    def load_config(self) -> PretrainedConfig | None:
        """Load the config of the model. Returns None if no model is named. Raises UserError if it cannot be read."""
        if self.given is not None:
            if not isinstance(self.given, PreTrainedModel):
                raise UserError(
                    f"model: a {self.given.__class__.__name__} was given; a task on texts needs a model of transformers"
                )
            config: PretrainedConfig = self.given.config
            return config
        if self.name is None and self.type is None:
            return None
        return load_model_config(
            name=self.name,
            model_type=self.type,
            overrides=self.overrides,
            trust_remote_code=self.trust_remote_code,
        )

    def load_processor(
        self,
        task: Task | None,
        config: PretrainedConfig | None,
        *,
        texts: Callable[[], Iterable[str]] | None,
        max_length: int,
        say: Callable[[str], None],
    ) -> Any | None:
        """Load or train the tokenizer, or load the image processor. Returns None if the task needs none.

        Args:
            config: of the model; None if it is unknown or not from transformers.
            texts: returns the texts to train a tokenizer on; None if they are not available.
            max_length: tokens of the longest row.
            say: receives one line of text per note, for the console.

        Raises:
            UserError: the processor cannot be loaded, or the section does not name it.
        """
        if task is not None and task.auto_processor is None and task.auto_model is None:
            return None
        # A model object knows the name of its own tokenizer.
        name = self.tokenizer or getattr(self.given, "name_or_path", None) or self.name
        if task is not None and task.auto_processor == "AutoImageProcessor":
            if self.chat_template is not None:
                raise UserError("model.chat_template: the task reads no texts; leave it out")
            if name == "train":
                raise UserError("model.tokenizer: train: a task on images has no tokenizer; leave it out")
            if name:
                return load_image_processor(find_model(name), trust_remote_code=self.trust_remote_code)
            return None if config is None else make_image_processor(config)
        if self.tokenizer == "train":
            if task is None or texts is None:
                return None
            tokenizer = train_tokenizer(
                texts(), framed=task.frames_texts, vocab_size=self.vocab_size, max_length=max_length
            )
        elif name:
            tokenizer = load_tokenizer(find_model(name), trust_remote_code=self.trust_remote_code, say=say)
        elif self.given is not None:
            raise UserError("model.tokenizer: the model that was given does not say where its tokenizer is; set it")
        elif self.type is not None:
            raise UserError(
                f"model.tokenizer: model.type is {self.type!r}, which brings no tokenizer; set model.tokenizer to a "
                "hub id, a local directory or train"
            )
        else:
            return None  # the missing model is already reported as a problem
        if self.chat_template == "plain" and tokenizer.eos_token is None:
            raise UserError("model.chat_template: plain: the tokenizer has no end token; choose another tokenizer")
        if self.chat_template is not None:
            tokenizer.chat_template = read_chat_template(self.chat_template)
        return tokenizer

    def fit(
        self,
        config: PretrainedConfig,
        *,
        task: Task,
        tokenizer: Any,
        label_names: Sequence[str] | None,
        max_length: int,
        frozen: Sequence[str],
        groups: Sequence[Mapping[str, Any]],
        seed: int,
    ) -> list[str]:
        """Check that model, tokenizer and data fit together, and adapt the model's config to them. Loads no weights.

        Args:
            tokenizer: None if the model reads no tokens.
            frozen: `optimizer.freeze`; each pattern must match parameters of the model.
            groups: `optimizer.groups`; likewise.

        Returns:
            One line of text for each value that differed in the config.

        Raises:
            UserError: they do not fit together; lists all problems.
        """
        problems = Problems()
        if self.given is None:
            self._check_files(config, task, problems)
        problems.lines += self._check_overrides(task, tokenizer, label_names)
        problems.refuse()
        lines = fit_model_config(
            config,
            tokenizer=tokenizer,
            new_vocabulary=self.name is None and self.given is None,
            vocab_size=self.overrides.get("vocab_size"),
            label_names=label_names,
            problem_type=task.problem_type,
        )
        empty: Any = self.given
        if empty is None or self.adapter is not None:  # adding an adapter changes the model
            model_class = str(task.auto_model)
            empty = make_empty_model(config, model_class=model_class, trust_remote_code=self.trust_remote_code)
        if tokenizer is not None:
            problems.lines += check_model_config(
                config,
                empty=empty,
                tokenizer=tokenizer,
                own_tokenizer=self.tokenizer is None and self.given is None,
                max_length=max_length,
                needs_end=config.is_encoder_decoder and task.reads_end,
            )
            problems.lines += task.fit_positions(count_tabled_positions(empty))
        if task.auto_processor == "AutoImageProcessor":
            problems.lines += self._check_channels(config)
        if self.adapter is not None:
            empty = problems.collect("", self.adapter.add_to_empty, empty, task_type=task.peft_type, seed=seed)
        if empty is not None and (frozen or groups or self.adapter):
            rules = [GroupRule(group["match"]) for group in groups]
            problems.collect("optimizer.", check_patterns, empty, frozen=frozen, rules=rules)
        problems.refuse()
        return lines

    def check_outputs(self, config: PretrainedConfig, num_outputs: int, *, are_numbers: bool) -> None:
        """Raise UserError if a model object has another number of outputs than the data.

        Args:
            are_numbers: the outputs are numbers (regression), not classes.
        """
        if self.given is not None and config.num_labels != num_outputs:
            needs = f"{num_outputs} numbers are predicted" if are_numbers else f"the data has {num_outputs} classes"
            needs = "a number is predicted" if are_numbers and num_outputs == 1 else needs
            raise UserError(f"model: the one that was given has {config.num_labels} outputs, and {needs}")

    def _check_channels(self, config: PretrainedConfig) -> list[str]:
        """Return a problem if the model does not take images with 3 channels."""
        channels = getattr(config, "num_channels", 3)
        if channels == 3:
            return []
        or_else = "" if self.name is not None and not self.from_scratch else ", or set model.overrides.num_channels=3"
        return [
            f"model: the config has num_channels {channels}, and images are read with 3; choose another model{or_else}"
        ]

    def _check_overrides(self, task: Task, tokenizer: Any, label_names: Sequence[str] | None) -> list[str]:
        """Return the problems of overrides whose values the data or the tokenizer decide."""
        problems = []
        num_labels, vocab_size = self.overrides.get("num_labels"), self.overrides.get("vocab_size")
        is_regression = task.problem_type == "regression"
        count = len(label_names) if label_names is not None else 1 if is_regression else None
        if count is not None and num_labels not in (None, count):
            if is_regression:
                numbers = "one number is" if label_names is None else f"{count} numbers are"
                reason = f"{numbers} predicted; leave it out"
            else:
                remedy = "leave it out, and name classes that have no rows in data.label_names"
                reason = f"the data has {count} classes, which decide; {remedy}"
            problems.append(f"model.overrides.num_labels: {num_labels}, but {reason}")
        problems += [
            f"model.overrides.{name}: the classes are named by the data; leave it out, and see data.label_names"
            for name in ("id2label", "label2id")
            if label_names is not None and name in self.overrides
        ]
        is_new = tokenizer is not None and self.name is None  # the vocabulary of a new model is that of the tokenizer
        if is_new and isinstance(vocab_size, int) and vocab_size < count_tokens(tokenizer):
            problems.append(
                f"model.overrides.vocab_size: {vocab_size} is less than the {count_tokens(tokenizer):,} tokens of the "
                "tokenizer; leave it out, or give more"
            )
        return problems

    def _check_files(self, config: PretrainedConfig, task: Task, problems: Problems) -> None:
        """Add problems if the model type does not fit the task, or if its weights cannot be read or trained."""
        key = f"model.name: {self.name}" if self.name is not None else f"model.type: {self.type}"
        model_class = str(task.auto_model)
        supported = getattr(getattr(transformers, model_class), "_model_mapping", None)
        has_remote_code = self.trust_remote_code and model_class in (getattr(config, "auto_map", None) or {})
        if supported is not None and type(config) not in supported and not has_remote_code:
            problems.lines.append(
                f"{key} is of type {config.model_type}, for which transformers has no {model_class}; choose another "
                "model, such as a bert or a roberta"
            )
        if self.name is None or self.from_scratch:
            return
        folder = Path(find_model(self.name))
        or_else = ", or build a new model from its config with model.from_scratch=true"
        faults = check_weight_files(folder, or_else=or_else) if folder.is_dir() else []
        problems.lines += [f"model.name: {fault}" for fault in faults]
        if getattr(config, "quantization_config", None) is not None:
            problems.lines.append(
                f"{key} holds weights that were quantised before, which cannot learn; take the model they were made "
                "from, and model.quantize=4bit with an adapter"
            )


def plan_model(section: ModelPlan, problems: Problems) -> ModelPlan:
    """Check the section without reading a file, and plan its adapter.

    Errors are added to `problems`. The plan is returned anyway, so that the caller can check the rest too.
    """
    lora, peft = section.lora, section.peft
    adapter = problems.collect("model.", plan_lora, **lora) or problems.collect("model.", plan_peft, **peft)
    if section.quantize is not None:
        problems.lines += _check_quantize(section)
    return replace(section, adapter=adapter)


def _check_quantize(section: ModelPlan) -> list[str]:
    """Return the problems of `model.quantize`: 4-bit weights must be loaded, and need an adapter that is trained."""
    key, lora, peft = f"model.quantize: {section.quantize}", section.lora, section.peft
    problems = []
    if section.given is not None or section.name is None or section.from_scratch:
        problems.append(f"{key}: weights are quantised while they load, and here none are loaded; set it to null")
    if lora["r"] is None and peft["name"] is None:
        problems.append(f"{key}: 4-bit weights cannot be trained; add an adapter, for example with model.lora.r=16")
    if lora["merge"] or peft["merge"]:
        problems.append(f"{key}: merging an adapter into 4-bit weights would lose precision; set merge to false")
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"{key} needs the package bitsandbytes: pip install bitsandbytes")
    return problems
