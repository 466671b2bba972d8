"""Checks before training whether a push to the hub can succeed: name, token and write access."""

import functools
import re
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from trainer_loop.errors import in_one_line
from trainer_loop.runtime.hub import describe_unreachable, hub_is_reachable

_SECONDS_WITHOUT_PROGRESS = 120.0  # then a request fails; huggingface_hub has no timeout
_TRIES = 3
_LONGEST_WAIT = 300.0  # seconds between two tries: the hub counts requests in windows of five minutes
_LONGEST_WAIT_AT_START = 20.0
_TRANSIENT = (408, 429, 500, 502, 503, 504)
MISSING = (401, 404)  # the hub hides repositories that a token may not see
_TOKENS = "https://huggingface.co/settings/tokens"
_Result = TypeVar("_Result")


def open_api() -> HfApi:
    """Return the API of the hub with the current token; a token from a browser login is renewed over time."""
    return HfApi(token=get_token(), library_name="trainer_loop")


def check_access(repo: str, *, private: bool, place: str, later: str) -> tuple[list[str], list[str]]:
    """Return the problems of a push to `repo`, one line each, and notes for the user. Nothing is created on the hub.

    Args:
        private: Whether a new repository would be private.
        place: The config key of the name.
        later: The remedy without network.
    """
    problems = [] if (fault := explain_name(repo)) is None else [f"{place}: {fault}"]
    if not hub_is_reachable():
        return [*problems, f"{place}: {describe_unreachable()}, so the push cannot be checked; {later}"], []
    if get_token() is None:
        problems.append(f"{place}: there is no token; run `hf auth login`, or set HF_TOKEN to one of {_TOKENS}")
    if problems:
        return problems, []
    try:
        problem, notes = _ask_hub(open_api(), repo, private=private)
    except (HTTPError, OSError, ValueError) as error:
        problem, notes = explain_failure(error), []
    return [] if problem is None else [f"{place}: {problem}"], notes


def _ask_hub(api: HfApi, repo: str, *, private: bool) -> tuple[str | None, list[str]]:
    """Return the reason why the token may not push, or None, and notes for the user."""
    user = _ask_for_user(api, longest_wait=_LONGEST_WAIT_AT_START)
    repo_id = repo if "/" in repo else f"{user['name']}/{repo}"
    try:
        _ask_quickly(lambda: api.auth_check(repo_id, write=True))
    except HfHubHTTPError as error:
        if status_of(error) in MISSING:
            return _explain_token(user, repo_id) or _explain_other_type(api, repo_id), []
        if status_of(error) == 403:
            return f"{repo_id} is there and the token may not write to it; use one with that right, of {_TOKENS}", []
        raise
    if private and _ask_quickly(lambda: api.model_info(repo_id)).private is False:
        return None, [f"{repo_id} is there already and is public; hub.private decides for new repositories alone"]
    return None, []


def push_command(model: str, repo: str) -> str:
    """Return the command that pushes the exported model of a run."""
    return f"python -m trainer_loop.push model={shlex.quote(model)} repo={shlex.quote(repo)}"


def explain_name(repo: str) -> str | None:
    """Return the reason why the name of a repository is invalid, or None."""
    path = re.sub(r"^https?://[^/]+/|^(models|datasets|spaces)/", "", repo)
    if path != repo and explain_name(path) is None:
        return f"{repo} is no name; write {path}, the name of a repository for models"
    if is_name(repo):
        return None
    return (
        f"{repo!r} is no name of a repository; one is me/imdb-bert, or imdb-bert in your own namespace: at most 96 "
        "letters, digits, -, _ and ., without -- and .., and with no .git, - or . at its ends"
    )


def is_name(repo: str) -> bool:
    """Return whether this is a valid name on the hub."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


def find_repo_id(api: HfApi, repo: str) -> str:
    """Return the full name of a repository; a name without a namespace is in the user's own namespace."""
    return repo if "/" in repo else f"{_find_user_name(api.endpoint, get_token())}/{repo}"


@functools.cache
def _find_user_name(endpoint: str, token: str | None) -> str:
    """Return the user's name. It is requested once, because the hub limits this request more than others."""
    return str(_ask_for_user(HfApi(endpoint, token=token), longest_wait=_LONGEST_WAIT)["name"])


def _ask_for_user(api: HfApi, *, longest_wait: float) -> dict[str, Any]:
    user = retrying(api.whoami, longest_wait=longest_wait)
    if not isinstance(user, dict) or not isinstance(user.get("name"), str):
        raise ValueError(f"{api.endpoint} does not say whose token this is; is it a hub?")
    return user


def retrying(function: Callable[[], _Result], *, longest_wait: float = _LONGEST_WAIT) -> _Result:
    """Make a request; repeat it if the hub is busy or fails, unless it asks to wait longer than `longest_wait` s."""
    for attempt in range(1, _TRIES + 1):
        get_session().timeout = _SECONDS_WITHOUT_PROGRESS
        try:
            return function()
        except HTTPError as error:
            response = getattr(error, "response", None)
            retry_after = "" if response is None else response.headers.get("Retry-After", "")
            wait = float(retry_after) if retry_after.isdecimal() else 2.0**attempt
            if status_of(error) not in (None, *_TRANSIENT) or attempt == _TRIES or wait > longest_wait:
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _ask_quickly(function: Callable[[], _Result]) -> _Result:
    """Make a request with short delays between tries: before training, the user may be waiting."""
    return retrying(function, longest_wait=_LONGEST_WAIT_AT_START)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status in an error of the hub; None if the hub did not answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def explain_failure(error: BaseException) -> str:
    """Return the reason why a request or a push failed, in one line, with the remedy if there is one."""
    if isinstance(error, ValueError):  # raised by huggingface_hub itself, for example for invalid front matter
        return in_one_line(error)
    cause = error
    while status_of(cause) is None and cause.__cause__ is not None:
        cause = cause.__cause__
    status = status_of(cause)
    if status is None:
        return in_one_line(error) if cause is error else f"{in_one_line(error)} {in_one_line(cause)}"
    message = in_one_line(RuntimeError(getattr(cause, "server_message", None) or cause))
    remedies: Mapping[int, str] = {
        401: "the token is not valid; run `hf auth login --force`, or set HF_TOKEN to one of " + _TOKENS,
        403: f"the token may not do this ({message}); use one with the right to write, of {_TOKENS}",
        429: f"the hub asks to wait, too many requests were made ({message}); try again later",
    }
    return remedies.get(status, f"the hub answered {status} ({message})")


def _explain_token(user: Mapping[str, Any], repo_id: str) -> str | None:
    """Return the reason why the token may not create the repository, or None."""
    namespace = repo_id.partition("/")[0]
    token = user.get("auth", {}).get("accessToken") or {}  # a login by browser has none
    if token.get("role") == "read":
        return f"the token {token.get('displayName', '')!r} only reads; use one with the right to write, of {_TOKENS}"
    if token.get("role") == "fineGrained" and isinstance((token.get("fineGrained") or {}).get("scoped"), list):
        writes = [scope for scope in token["fineGrained"]["scoped"] if "repo.write" in scope.get("permissions", [])]
        names = {str(scope.get("entity", {}).get("name")).lower() for scope in writes}
        if names & {namespace.lower(), repo_id.lower()}:
            return None
        return f"the fine-grained token may not write to repositories of {namespace}; give it that right at {_TOKENS}"
    roles = {str(org.get("name")): org.get("roleInOrg") for org in user.get("orgs", [])}
    namespaces = {name.lower(): name for name in (user["name"], *roles)}
    if namespace.lower() not in namespaces:
        return f"{user['name']} is in no organisation {namespace}; allowed: {', '.join(namespaces.values())}"
    if roles.get(namespaces[namespace.lower()]) == "read":
        who = f"{user['name']} only reads in the organisation {namespace}"
        return f"{who}; ask its administrators for the right to write"
    return None


def _explain_other_type(api: HfApi, repo_id: str) -> str | None:
    """Return a message if the name belongs to a data set or a space, else None."""
    for kind in ("dataset", "space"):
        try:
            _ask_quickly(lambda: api.repo_info(repo_id, repo_type=kind))  # noqa: B023 - called at once
        except HfHubHTTPError as error:
            if status_of(error) not in (*MISSING, 403):
                raise
        else:
            return (
                f"{repo_id} is a {kind}; choose another name, or make a repository for models of this one first: "
                f"hf repos create {repo_id}"
            )
    return None
