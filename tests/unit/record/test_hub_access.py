"""The checks of the hub before training: name, token, write access; each fault is one line."""

import pytest
from hub_server import TOKEN, Fault, Repo, make_user
from huggingface_hub import constants

from trainer_loop.record.hub_access import check_access
from trainer_loop.runtime.hub import hub_is_reachable

LATER = "push later: python -m trainer_loop.push model=runs/imdb repo=me/imdb"


def ask(repo: str, *, private: bool = True) -> tuple[list[str], list[str]]:
    return check_access(repo, private=private, place=f"hub.push: {repo}", later=LATER)


def problem_of(repo: str) -> str:
    problems, notes = ask(repo)
    assert len(problems) == 1 and notes == []
    assert "\n" not in problems[0] and problems[0].startswith(f"hub.push: {repo}: ")
    assert TOKEN not in problems[0]
    return problems[0]


@pytest.mark.parametrize("repo", ["me/new", "new", "ME/new", "lab/new"])
def test_a_new_name_in_a_namespace_of_the_user_is_free(hub, repo):
    hub.users[TOKEN] = make_user(orgs={"lab": "contributor"})
    assert ask(repo) == ([], [])
    assert hub.repos == {}, "the check creates nothing"
    assert hub.count("POST") == 0


@pytest.mark.parametrize("private", [True, False])
def test_an_existing_repository_with_write_access_is_accepted(hub, private):
    hub.repos["model", "me/there"] = Repo(private=True)
    assert ask("there", private=private) == ([], [])


def test_a_public_repository_is_reported_if_a_private_one_is_requested(hub):
    hub.repos["model", "me/there"] = Repo(private=False)
    assert ask("me/there", private=False) == ([], [])
    problems, (note,) = ask("me/there", private=True)
    assert problems == [] and "me/there is there already and is public" in note


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("me/a b", "is no name of a repository"),
        ("me/x/y", "is no name of a repository"),
        ("-x", "is no name of a repository"),
        ("me/x--y", "is no name of a repository"),
        ("me/x.git", "is no name of a repository"),
        ("me/" + "x" * 97, "is no name of a repository"),
        ("https://huggingface.co/me/imdb", "write me/imdb"),
        ("models/me/imdb", "write me/imdb"),
        ("datasets/me/imdb", "write me/imdb"),
        ("", "is no name of a repository"),
    ],
)
def test_an_invalid_name_is_reported_with_the_right_form(hub, repo, message):
    assert message in problem_of(repo)
    assert hub.count("GET") == 0


def test_a_bad_name_and_a_missing_token_are_reported_together(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    problems, _ = ask("me/a b")
    assert len(problems) == 2
    assert "hf auth login" in problems[1] and "HF_TOKEN" in problems[1]


def test_an_unknown_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 34)
    message = problem_of("me/new")
    assert "the token is not valid" in message and "z" * 34 not in message


@pytest.mark.parametrize(
    ("user", "repo", "message"),
    [
        (make_user(role="read"), "me/new", "the token 'laptop' only reads"),
        (make_user(orgs={"lab": "write"}), "other/new", "me is in no organisation other; allowed: me, lab"),
        (make_user(orgs={"lab": "read"}), "lab/new", "me only reads in the organisation lab"),
        (make_user(role="fineGrained", scoped={}), "me/new", "the fine-grained token may not write"),
        (make_user(role="fineGrained", scoped={"me": ["repo.content.read"]}), "me/new", "may not write"),
        (make_user(role="fineGrained", scoped={"me": ["repo.write"]}), "lab/new", "may not write"),
    ],
)
def test_a_token_without_write_access(hub, user, repo, message):
    hub.users[TOKEN] = user
    assert message in problem_of(repo)


@pytest.mark.parametrize("entity", ["me", "me/new", "Me"])
def test_a_fine_grained_token_with_write_access(hub, entity):
    hub.users[TOKEN] = make_user(role="fineGrained", scoped={entity: ["repo.content.read", "repo.write"]})
    assert ask("me/new") == ([], [])


def test_the_hub_decides_about_write_access_to_an_existing_repository(hub):
    hub.repos["model", "other/theirs"] = Repo(writable=False)
    assert "may not write to it" in problem_of("other/theirs")
    hub.repos["model", "other/ours"] = Repo()  # such as one of a resource group that whoami does not list
    assert ask("other/ours") == ([], [])


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_the_name_of_a_repository_of_another_type(hub, kind):
    hub.repos[kind, "me/reviews"] = Repo()
    assert f"me/reviews is a {kind}; choose another name" in problem_of("me/reviews")
    hub.repos["model", "me/reviews"] = Repo()
    assert ask("me/reviews") == ([], [])


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_network_the_message_says_how_to_push_later(hub, monkeypatch, how):
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub_is_reachable.cache_clear()
    message = problem_of("me/new")
    assert message.endswith(LATER)
    assert ("HF_HUB_OFFLINE is set" if how == "offline" else "127.0.0.1:9") in message


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "3"}), (500, {}), (503, {})])
@pytest.mark.parametrize("request_", ["whoami", "auth-check", "/api/datasets/me"])
def test_a_busy_hub_is_asked_again_after_the_time_that_it_requests(hub, status, headers, request_):
    hub.faults.append(Fault(request_, status, times=2, headers=headers))
    assert ask("me/new") == ([], [])
    assert hub.waits == ([3.0, 3.0] if status == 429 else [2.0, 4.0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("whoami", 500), "the hub answered 500 (as the test wants: 500)"),
        (Fault("auth-check", 503), "the hub answered 503"),
        (Fault("whoami", 429, headers={"Retry-After": "120"}), "asks to wait"),
        (Fault("whoami", 403), "may not do this"),
        (Fault("whoami", cut_after=0), "disconnected"),
    ],
)
def test_a_broken_hub_is_reported_in_one_line(hub, fault, message):
    hub.faults.append(fault)
    assert message in problem_of("me/new")
    assert all(wait <= 20 for wait in hub.waits), "somebody waits in front of it"
