"""Parameter groups: which parameters are trained, from which step, and with which learning rate and weight decay."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trainer_loop.errors import refuse
from trainer_loop.optim.layers import LINEAR_LAYERS, find_depths
from trainer_loop.runtime.text_table import align


@dataclass(frozen=True)
class GroupRule:
    """Special values for the parameters whose name matches a pattern; None leaves a value unchanged."""

    match: str  # shell pattern: classifier.*, *.layer.0.*
    lr: float | None = None
    weight_decay: float | None = None  # of all matching parameters, including biases and norms
    unfreeze_at: int | None = None  # number of updates before the first that changes these parameters


_NO_RULE = GroupRule("*")
# Parameters with these names never decay, whatever their shape; the same names as in transformers.Trainer.
_WITHOUT_DECAY = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that an optimizer treats alike."""

    title: str  # for messages, such as `layer 3, matrices`
    parameters: Mapping[str, nn.Parameter]
    lr: float
    weight_decay: float
    unfreeze_at: int
    is_hidden_matrix: bool

    def for_optimizer(self) -> dict[str, Any]:
        """The group as a dict, as torch optimizers expect it."""
        return {"params": list(self.parameters.values()), "lr": self.lr, "weight_decay": self.weight_decay}


def freeze_parameters(model: nn.Module, patterns: Iterable[str]) -> None:
    """Freeze the parameters whose name matches one of the patterns."""
    for pattern in patterns:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if fnmatchcase(name, pattern):
                parameter.requires_grad_(False)


def check_patterns(model: nn.Module, *, frozen: Sequence[str], rules: Sequence[GroupRule]) -> None:
    """Raise UserError for patterns that match nothing in the model, or leave nothing to train.

    The problems name keys of the section `optimizer` without its name. The weights of the model are not read.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    problems = [
        f"freeze: {pattern} matches no parameter; {_examples(names)}"
        for pattern in frozen
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    trainable = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in frozen)]
    if not trainable:
        problems.append("freeze: it leaves no parameter to train; freeze fewer")
    open_names = trainable
    for index, rule in enumerate(rules):
        place = f"groups[{index}]: {rule.match}"
        if not any(fnmatchcase(name, rule.match) for name in names):
            problems.append(f"{place} matches no parameter; {_examples(names)}")
        elif trainable and not any(fnmatchcase(name, rule.match) for name in open_names):
            problems.append(f"{place} matches only what is frozen or matches an earlier group; remove it")
        open_names = [name for name in open_names if not fnmatchcase(name, rule.match)]
    refuse(problems)


def make_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    rules: Sequence[GroupRule] = (),
    layer_decay: float = 1.0,
    unfreeze_every: int = 0,
    hidden_matrices_apart: bool = False,
    calls: Sequence[str] = (),
) -> list[ParameterGroup]:
    """Put every trainable parameter into exactly one group. Groups with the learning rate `lr` come first.

    The first matching rule applies. Parameters without a rule get these values: matrices have weight decay; vectors,
    and parameters whose name contains bias or norm, have none. The learning rate `lr` of the head is multiplied by
    `layer_decay` for each layer below it. After every `unfreeze_every` updates, unless this is 0, one more layer below
    the head starts to learn.

    Args:
        hidden_matrices_apart: whether the weights of linear layers inside the model's layers get their own groups.
        calls: see `find_depths`.
    """
    depths, top = find_depths(model, calls)
    linear = {id(module.weight) for module in model.modules() if isinstance(module, LINEAR_LAYERS)}
    by_layer = layer_decay != 1.0 or unfreeze_every > 0
    all_rules = [_NO_RULE, *rules]
    gathered: dict[tuple[int, int, bool, bool], dict[str, nn.Parameter]] = {}
    names: dict[nn.Parameter, list[str]] = {}  # a tied weight has several names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matches = (any(fnmatchcase(alias, rule.match) for alias in names[parameter]) for rule in rules)
        index = next((index for index, does_match in enumerate(matches, start=1) if does_match), 0)
        rule = all_rules[index]
        follows_layers = by_layer and None in (rule.lr, rule.unfreeze_at)
        no_decay = rule.weight_decay is None and (parameter.ndim < 2 or _WITHOUT_DECAY.search(name.lower()) is not None)
        is_hidden = hidden_matrices_apart and id(parameter) in linear and 0 < depths[name] < top
        key = (index, top - depths[name] if follows_layers else 0, no_decay, is_hidden)
        gathered.setdefault(key, {})[name] = parameter
    groups = []
    for (index, below_head, no_decay, is_hidden), parameters in sorted(gathered.items(), key=lambda item: item[0]):
        rule = all_rules[index]
        own_decay = 0.0 if no_decay else weight_decay
        groups.append(
            ParameterGroup(
                title=_describe(rule, depth=top - below_head if by_layer else None, top=top, no_decay=no_decay)
                + (" of hidden layers" if is_hidden else ""),
                parameters=parameters,
                lr=lr * layer_decay**below_head if rule.lr is None else rule.lr,
                weight_decay=own_decay if rule.weight_decay is None else rule.weight_decay,
                unfreeze_at=below_head * unfreeze_every if rule.unfreeze_at is None else rule.unfreeze_at,
                is_hidden_matrix=is_hidden,
            )
        )
    return groups


def describe_groups(groups: Sequence[ParameterGroup], frozen: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the groups as lines of a table; frozen parameters are the last row."""
    rows = [("parameters", "number", "learning rate", "weight decay", "first update", "for example")]
    for group in groups:
        values = (f"{group.lr:.3g}", f"{group.weight_decay:g}", f"{group.unfreeze_at + 1:,}")
        rows.append((group.title, f"{_count(group.parameters):,}", *values, next(iter(group.parameters))))
    if frozen:
        rows.append(("frozen", f"{_count(frozen):,}", "-", "-", "never", next(iter(frozen))))
    return align(rows, left=(0, 5))


def _describe(rule: GroupRule, *, depth: int | None, top: int, no_decay: bool) -> str:
    origins = {None: "", 0: "embeddings", top: "head"}
    place = origins.get(depth, f"layer {depth}") if None in (rule.lr, rule.unfreeze_at) else ""
    kind = "biases and norms" if no_decay else "matrices" if rule.weight_decay is None else ""
    return ", ".join(part for part in ("" if rule is _NO_RULE else rule.match, place, kind) if part)


def _count(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _examples(names: Sequence[str]) -> str:
    return f"names here are like {', '.join(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))}"
