"""Secrets are neither written down nor sent; a config that had some can still be run again."""

import copy
import dataclasses
import pickle

import pytest

from trainer_loop import UserError, load_config
from trainer_loop.config.load import flatten, public_values, spell_config
from trainer_loop.config.secrets import FromEnvironment, find_secrets, is_secret, mask_arguments
from trainer_loop.record.run_dir import write_text

BASE = ["model.name=m", "data.name=d"]
SECRET = "s3cr3t-of-mine"

SECRETS = ["api_key", "apiKey", "API_KEY", "key", "token", "hf_token", "authToken", "access_tokens", "password"]
SECRETS += ["db_passwd", "client_secret", "aws_secret_access_key", "credentials", "webhook_url", "Authorization"]
SECRETS += ["accesstoken", "authtoken", "apitoken", "secretkey", "db_pass", "pat", "ssl_key", "sentry_dsn"]
OTHERS = [
    "eos_token",
    "pad_token",
    "mask_token",
    "tokenizer",
    "max_tokens",
    "num_key_value_heads",
    "monkey",
    "sort_key",
]
OTHERS += ["keyboard", "author", "name", "tags", "entity", "passes", ""]


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets(name):
    assert is_secret(name, SECRET)


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_things(name):
    assert not is_secret(name, "value")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("token", "<sep>", False),
        ("token", "[SEP]", False),
        ("token", 3, False),
        ("key", 3, False),
        ("password", 1234, True),
        ("api_key", 1234, True),
        ("api_key", None, False),
        ("use_auth", True, False),
        ("uri", "https://me:pass@host/path", True),
        ("uri", "https://host:8080/path@me", False),
        ("uri", "https://ghp_abc@github.com/me", True),
        ("x", "hf_abcdefghijklmnopqrstuvwxyz0123", True),
        ("headers", "Authorization: Bearer 0123456789", True),
        ("connection_string", "Server=db;Password=hunter2;", True),
        ("token", 123456789, True),
        ("tokens", "0123456789abcdef", False),
    ],
)
def test_values_that_are_none_whatever_they_are_called(name, value, wanted):
    assert is_secret(name, value) == wanted


def test_secrets_are_found_at_any_depth_and_each_has_a_variable_of_its_own():
    tree = {
        "comet_ml": {"api_key": SECRET, "tags": ["a"]},
        "x": [{"access_tokens": ["a", "b"]}],
        "credentials": {"user": "me"},
    }
    found = find_secrets(tree, "log.tracker_args")
    assert found["comet_ml"]["api_key"].source == "${oc.env:COMET_ML_API_KEY}"
    assert [token.source for token in found["x"][0]["access_tokens"]] == [
        "${oc.env:X_0_ACCESS_TOKENS_0}",
        "${oc.env:X_0_ACCESS_TOKENS_1}",
    ]
    assert found["credentials"]["user"].source == "${oc.env:CREDENTIALS_USER}"
    assert not isinstance(found["comet_ml"]["tags"][0], FromEnvironment)
    assert found == tree, "who is set up with it gets the values"


@pytest.mark.parametrize(
    "how",
    [
        "log.tracker_args={wandb: {api_key: %s, tags: [baseline]}}",
        "log.tracker_args.wandb={api_key: '%s'}",
        "log.tracker_args.wandb.api_key=%s",
        "log.tracker_args={wandb: {password: {any: [%s]}}}",
        "log.tracker_args={wandb: {url: 'https://me:%s@host'}}",
        "task.args={hf_token: %s}",
        "model.overrides={api_key: %s}",
        "log.tracker_args={wandb: {api_key: '${oc.env:MINE}'}}",
        "log.tracker_args={wandb: {api_key: 'Bearer ${oc.env:MINE}'}}",
        "log.tracker_args={wandb: {anything: '${oc.env:MINE}'}}",
        "log.tracker_args={wandb: {anything: '${log.project}'}}",
        "log.tracker_args={wandb: '${task.args}'}",
        "log.tracker_args={wandb: {api_key: '${oc.env:NOT_THERE,%s}'}}",
    ],
)
def test_a_secret_stands_nowhere_and_the_config_runs_again(how, tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", SECRET)
    more = (
        ["log.project=${oc.env:MINE}", "task.args={inner: '${oc.env:MINE}'}"]
        if "${log" in how or "${task" in how
        else []
    )
    argument = how.replace("%s", SECRET)
    config = load_config(None, [*BASE, *more, argument])
    assert SECRET in str(dataclasses.asdict(config)), "who is set up with it gets it"
    write_text(tmp_path / "config.yaml", spell_config(config))
    text = (tmp_path / "config.yaml").read_text()
    written = [text, str(public_values(config)), str(flatten(config)), str(mask_arguments(["run", *BASE, argument]))]
    assert not [place for place in written if SECRET in place]

    variables = {line.partition("${oc.env:")[2].partition("}")[0] for line in text.splitlines() if "${oc.env:" in line}
    for variable in variables - {"MINE"}:
        with pytest.raises(UserError, match=f"{variable} is not set: export {variable}=..."):
            load_config(str(tmp_path / "config.yaml"))
        monkeypatch.setenv(variable, f"https://me:{SECRET}@host" if "URL" in variable else SECRET)
    again = load_config(str(tmp_path / "config.yaml"))
    if "Bearer" not in how:  # only the user knows what belongs into the variable then
        assert again == config
    assert public_values(again) == public_values(load_config(str(tmp_path / "config.yaml")))


def test_what_comes_from_the_environment_is_written_by_its_source_and_the_rest_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "/somewhere")
    monkeypatch.setenv("STEPS", "7")
    given = [
        "model.name=${oc.env:PLACE}/bert",
        "data.name=d",
        "run_dir=${oc.env:PLACE}/${seed}",
        "train.steps=${oc.env:STEPS}",
    ]
    given += ["data.cache_dir=${run_dir}/cache", "log.project=runs/${seed}"]
    config = load_config(None, given)
    assert (config.model.name, config.data.cache_dir, config.train.steps) == (
        "/somewhere/bert",
        "/somewhere/42/cache",
        7,
    )
    write_text(tmp_path / "config.yaml", spell_config(config))
    text = (tmp_path / "config.yaml").read_text()
    assert "name: ${oc.env:PLACE}/bert" in text
    assert "cache_dir: ${run_dir}/cache" in text
    assert "project: runs/42" in text
    assert "steps: 7" in text
    assert load_config(str(tmp_path / "config.yaml")) == config
    values = public_values(config)
    assert values["run_dir"] == "${oc.env:PLACE}/${seed}"
    assert values["model.name"].startswith("${oc.env:PLACE}/bert #")


def test_a_key_that_updates_depend_on_shows_that_the_environment_has_another_value(monkeypatch):
    seen = []
    for place in ("a", "b", "a"):
        monkeypatch.setenv("PLACE", place)
        values = public_values(
            load_config(None, ["model.name=${oc.env:PLACE}", "data.name=d", "log.project=${oc.env:PLACE}"])
        )
        seen.append((values["model.name"], values["log.project"]))
    assert seen[0] == seen[2] != seen[1]
    assert {project for _, project in seen} == {"${oc.env:PLACE}"}


def test_what_was_masked_is_not_masked_again(monkeypatch):
    """As of a manifest that is compared with the config of now."""
    monkeypatch.setenv("MINE", SECRET)
    args = ["task.args={token: '${oc.env:MINE}'}", "log.tracker_args={wandb: {api_key: x, token: '${oc.env:MINE}'}}"]
    values = public_values(load_config(None, [*BASE, *args]))
    for name in ("task.args", "log.tracker_args"):
        assert find_secrets(values[name], name) == values[name]


def test_texts_from_the_environment_are_texts_and_survive_copies():
    text = FromEnvironment("value", "${oc.env:X}")
    for same in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):  # noqa: S301
        assert (same, same.source) == ("value", "${oc.env:X}")


@pytest.mark.parametrize(
    ("arguments", "masked"),
    [
        (["run.py", "seed=3", "batch.max_tokens=9"], ["run.py", "seed=3", "batch.max_tokens=9"]),
        (["log.tracker_args.wandb.api_key=x"], ["log.tracker_args.wandb.api_key=***"]),
        (
            ["log.tracker_args={wandb: {api_key: x, tags: [a]}}"],
            ["log.tracker_args={wandb: {api_key: ***, tags: [a]}}"],
        ),
        (["log.tracker_args={a: {api_key: 'x y', b: \"z\"}}"], ['log.tracker_args={a: {api_key: ***, b: "z"}}']),
        (["log.tracker_args={a: {api_key: '${oc.env:X}'}}"], ["log.tracker_args={a: {api_key: '${oc.env:X}'}}"]),
        (["log.tracker_args.wandb.api_key=${oc.env:X}"], ["log.tracker_args.wandb.api_key=${oc.env:X}"]),
        (["evaluate.metrics=[{name: f1, key: mine}]"], ["evaluate.metrics=[{name: f1, key: mine}]"]),
        (["train.py", "--token", "x", "--lr", "3"], ["train.py", "--token", "***", "--lr", "3"]),
        (["train.py", "--api-key=x"], ["train.py", "--api-key=***"]),
        (["log.tracker_args={a: [["], ["log.tracker_args={a: [["]),
    ],
)
def test_a_command_line_is_recorded_without_its_secrets(arguments, masked):
    assert mask_arguments(arguments) == masked
