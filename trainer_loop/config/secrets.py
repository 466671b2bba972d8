"""Finds and masks secrets: API keys, tokens, passwords, and values that the config takes from the environment."""

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from trainer_loop.config.yaml_core import NULL, compose

MASK = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ALWAYS = {
    *("password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials", "apikey"),
    *("auth", "authorization", "bearer", "jwt", "cookie", "cookies", "webhook", "dsn", "pat", "pass", "userpass"),
    *("accesskey", "accesstoken", "apitoken", "authkey", "authtoken", "secretkey", "privatekey", "passkey"),
}
# `key` and `token` also have harmless meanings: key/value heads, tokens of a text.
_OF_A_KEY = {
    *("api", "access", "account", "app", "auth", "aws", "azure", "client", "encryption", "gcp", "hf", "hub", "licence"),
    *("license", "master", "private", "secret", "service", "session", "shared", "signing", "ssh", "subscription"),
    *("bucket", "db", "ssl", "tls", "write"),
    *("comet", "neptune", "wandb"),
}
_OF_A_TEXT_TOKEN = {
    *("bos", "eos", "pad", "unk", "mask", "sep", "cls", "start", "end", "stop", "special", "new", "image", "audio"),
    *("video", "query", "document", "prompt", "response", "label", "separator", "decoder", "max", "min", "num"),
}
# A single variable without a default, which could be a secret, perhaps with the checksum of `name_sources`.
_NAMES_ALONE = re.compile(r"\$\{[^,{}]+\}( #[0-9a-f]{8})?")
# A user or token in a URL, a token of the hub or of GitHub, an HTTP header, a password in a connection string.
_SECRET_TEXT = re.compile(
    r"://[^/\s@]+@|\b(?:hf|api_org|hf_oauth|ghp|gho|github_pat)_[A-Za-z0-9_]{16,}"
    r"|\b(?:[Bb]earer|[Bb]asic|[Tt]oken)\s+[\w.~+/=-]{8,}|(?i:\b(?:password|pwd|accountkey)=[^;\s]+)"
)
# A database URL with a user, with options, or with a port that is no number.
_HOLDS_OPTIONS = re.compile(r"(?!sqlite:///)[\w+]+://(.*[@?]|[^/]*:(?!\d+(/|$)))")
_HUB_TOKEN = r"\b(?:hf|api_org|hf_oauth)_[A-Za-z0-9_]{20,}"
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_FORMS = re.compile(f"{_HUB_TOKEN}|{_PASSWORD_IN_URL.pattern}")
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|KEY|APIKEY|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIALS?)(_|$)")
_SHORTEST_IN_TEXT = 12  # shorter values of environment variables are not searched: they may be ordinary words
_LONG_NUMBER = 10**6  # smaller numbers are token ids
_PAIR = re.compile(r"""(?<![\w-])(?P<key>[\w-]+)(?P<between>["']?\s*[:=]\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,{}\[\]]+)""")


class FromEnvironment(str):
    """A text that comes, or must come, from the environment. `source` is its form in a config: `${oc.env:NAME}`."""

    source: str

    def __new__(cls, value: str, source: str) -> "FromEnvironment":
        text = super().__new__(cls, value)
        text.source = source
        return text

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.source


def is_secret(name: str, value: object) -> bool:
    """Return whether a value looks like a secret, judging by the name of its key and by the value."""
    if value is None or isinstance(value, bool):
        return False
    words = [word.lower() for word in _WORD.findall(name)] or [""]
    before, last = (words[-2] if len(words) > 1 else ""), words[-1]
    if _ALWAYS & set(words) or (last in ("key", "keys") and before in _OF_A_KEY):
        return True
    if last == "tokens" and before in _OF_A_KEY:
        return True
    if last == "token" and (not isinstance(value, str) or not value.startswith(("<", "["))):
        return before not in _OF_A_TEXT_TOKEN and not (isinstance(value, int | float) and abs(value) < _LONG_NUMBER)
    if not isinstance(value, str):
        return False
    if last == "connection" and _HOLDS_OPTIONS.match(value):
        return True
    return name.lower() in ("key", "keys") or _SECRET_TEXT.search(value) is not None


def is_from_environment(value: object) -> bool:
    """Return whether a value only names an environment variable, as in `${oc.env:NAME}`."""
    return isinstance(value, str) and _NAMES_ALONE.fullmatch(value) is not None


def find_connections(value: Any, path: str) -> Any:
    """Do the same as `find_secrets`, only in database queries `{sql: ..., connection: ...}` at any depth."""
    if isinstance(value, list):
        return [find_connections(item, f"{path}.{at}") for at, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    return {
        key: find_secrets(item, f"{path}.{key}") if key == "connection" else find_connections(item, f"{path}.{key}")
        for key, item in value.items()
    }


def mask_values(value: Any, name: str = "") -> Any:
    """Replace every secret in a value by `***`, for a message."""
    if isinstance(value, Mapping):
        return {key: mask_values(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [mask_values(item, name) for item in value]
    return MASK if isinstance(value, str) and is_secret(name, value) else value


def find_secrets(value: Any, path: str) -> Any:
    """Replace every secret by a `FromEnvironment`, whose variable is named after the path of the value."""
    return _find(value, path, name=path.rpartition(".")[2], below_secret=False)


def _find(value: Any, path: str, *, name: str, below_secret: bool) -> Any:
    if isinstance(value, Mapping):
        within = below_secret or is_secret(name, "")
        return {key: _find(item, f"{path}.{key}", name=str(key), below_secret=within) for key, item in value.items()}
    if isinstance(value, list):
        return [_find(item, f"{path}.{at}", name=name, below_secret=below_secret) for at, item in enumerate(value)]
    source = value.source if isinstance(value, FromEnvironment) else str(value)
    if is_from_environment(source) or value is None or not (below_secret or is_secret(name, value)):
        return value
    variable = re.sub(r"\W+", "_", path.removeprefix("log.tracker_args.")).upper()
    return FromEnvironment(str(value), f"${{oc.env:{variable}}}")


def name_sources(value: Any, *, with_digest: bool) -> Any:
    """Replace every text from the environment by its source.

    Args:
        with_digest: Add a checksum of the text, so that a change can be detected.
    """
    if isinstance(value, Mapping):
        return {key: name_sources(item, with_digest=with_digest) for key, item in value.items()}
    if isinstance(value, list):
        return [name_sources(item, with_digest=with_digest) for item in value]
    if not isinstance(value, FromEnvironment):
        return value
    return f"{value.source} #{zlib.crc32(value.encode(errors='replace')):08x}" if with_digest else value.source


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Mask the secrets of a command line, in the forms `key=value`, `key={a: value}` and `--key value`."""
    masked: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        before = masked[-1] if masked else ""
        if not equals and before.startswith("--") and "=" not in before and is_secret(before, argument):
            masked.append(MASK)
        elif equals and is_secret(name.rpartition(".")[2], value) and not is_from_environment(value):
            masked.append(f"{name}={MASK}")
        else:
            is_tree = equals and value[:1] in ("{", "[")
            only = "connection" if name.startswith(("data.", "evaluate.")) else None  # other names are the user's
            masked.append(f"{name}={_mask_yaml(value, only=only)}" if is_tree else argument)
    return masked


def mask_text(text: str) -> str:
    """Mask the secrets in any text, which need not be YAML."""

    def mask(match: re.Match[str]) -> str:
        key, between, value = match["key"], match["between"], match["value"]
        return f"{key}{between}{MASK}" if is_secret(key, value.strip("\"'")) else match.group()

    return _SECRET_TEXT.sub(MASK, _PAIR.sub(mask, text))


def _mask_yaml(text: str, *, only: str | None) -> str:
    """Mask the secrets in a YAML text. only: name of the keys that may hold secrets; None: all."""
    node, faults = compose(text)
    if faults:
        return mask_text(text)
    secrets = _secret_nodes(node, "", below_secret=False, only=only)
    marks = {(secret.start_mark.index, secret.end_mark.index) for secret in secrets}
    for start, end in sorted(marks, reverse=True):
        text = text[:start] + MASK + text[end:]
    return text


def _secret_nodes(node: Node | None, name: str, *, below_secret: bool, only: str | None) -> list[ScalarNode]:
    if isinstance(node, ScalarNode):
        is_hidden = (below_secret or is_secret(name, node.value)) and only in (None, name)
        return [node] if is_hidden and node.tag != NULL and not is_from_environment(node.value) else []
    if isinstance(node, MappingNode):
        within = below_secret or is_secret(name, "")
        return [
            secret
            for key, item in node.value
            for secret in _secret_nodes(item, str(key.value), below_secret=within, only=only)
        ]
    items = node.value if node is not None else []
    return [secret for item in items for secret in _secret_nodes(item, name, below_secret=below_secret, only=only)]


def mask_secrets(value: Any, *, key: str = "") -> Any:
    """Replace every secret in plain data by `***`, at any depth.

    The value of a key such as `api_key` is a secret. In any text, these parts are masked: text that looks like a hub
    token, the user and password of a URL, and the value of a secret environment variable.
    """
    if isinstance(value, Mapping):
        below = key if is_secret(key, "") else ""
        return {name: mask_secrets(item, key=below or str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item, key=key) for item in value]
    if is_from_environment(value):
        return value
    if is_secret(key, value) and not _PASSWORD_IN_URL.search(str(value)):
        return MASK
    if not isinstance(value, str):
        return value
    for secret in [match.group() for match in _FORMS.finditer(value)] + list(_secret_variables().values()):
        value = value.replace(secret, MASK)
    return value


def find_secret(text: str) -> str | None:
    """Describe the secret that a text contains, without showing it; None if there is none."""
    if _FORMS.search(text):
        return "text that looks like a token of the hub, or an address with a password"
    for name, secret in _secret_variables().items():
        if secret in text:
            return f"the value of the environment variable {name}"
    return None


def _secret_variables() -> dict[str, str]:
    """Return secret environment variables by name. Paths, such as HF_TOKEN_PATH, are not secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name.upper())
        and len(value) >= _SHORTEST_IN_TEXT
        and not value.startswith(("/", "~", "."))
    }
