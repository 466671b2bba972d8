"""Secrets that must not leave this machine: found in what is about to be pushed, and masked where that is ours."""

import os
import re
from collections.abc import Mapping
from typing import Any

from trainer_loop.config.secrets import MASK, is_from_environment, is_secret

_HUB_TOKEN = r"\b(?:hf|api_org|hf_oauth)_[A-Za-z0-9_]{20,}"
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_FORMS = re.compile(f"{_HUB_TOKEN}|{_PASSWORD_IN_URL.pattern}")
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|KEY|APIKEY|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIALS?)(_|$)")
_SHORTEST_IN_TEXT = 12  # of an environment variable's value: a shorter one may be a word


def mask_secrets(value: Any, *, key: str = "") -> Any:
    """Plain data with every secret in it replaced by `***`, at any depth.

    A value is a secret under a key that says so, such as `api_key`; in any text, whatever looks like a token of the
    hub, the user and password of an address, and what a secret variable of the environment holds is masked.
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
    for secret in _secrets_in(value):
        value = value.replace(secret, MASK)
    return value


def find_secret(text: str) -> str | None:
    """What secret a text holds, in words that do not repeat it; None where there is none."""
    if _FORMS.search(text):
        return "text that looks like a token of the hub, or an address with a password"
    for name, secret in _secret_variables().items():
        if secret in text:
            return f"the value of the environment variable {name}"
    return None


def _secrets_in(text: str) -> list[str]:
    forms = [found.group() for found in _FORMS.finditer(text)]
    return forms + [secret for secret in _secret_variables().values() if secret in text]


def _secret_variables() -> dict[str, str]:
    """By their names. A path, as of HF_TOKEN_PATH, leads to a secret and is none."""
    return {
        name: value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name.upper())
        and len(value) >= _SHORTEST_IN_TEXT
        and not value.startswith(("/", "~", "."))
    }
