"""A stand-in for the Hugging Face hub on 127.0.0.1: it speaks the part of its interface that a push needs, stores what
is committed, and fails as it is told."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "w" * 34
_LARGE = 10_000_000  # bytes, from which the hub stores a file apart
_PART = 1_000_000  # bytes of one part where a large file comes in parts


@dataclass
class Repo:
    """One repository: its files, and the paths that each commit has changed."""

    private: bool = True
    writable: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # files that are stored by their SHA-256
    commits: list[list[str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.messages, sorted(self.files))).encode()).hexdigest()


@dataclass
class Fault:
    """What happens to requests whose line contains `of`, so many times."""

    of: str
    status: int = 0
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body that are read before the connection is closed
    seconds: float = 0.0  # before the answer
    drops_answer: bool = False  # what was asked is done, and the connection closed without a word


class Hub:
    """The state of the stand-in; `calls` has the line of each request."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.users = {TOKEN: make_user()}
        self.in_parts = False  # large files come in parts
        self.lock = threading.RLock()
        self.endpoint = ""
        self.waits: list[float] = []  # seconds that the client would have waited between two tries

    def model(self, name: str) -> Repo:
        return self.repos["model", name]

    def count(self, part: str) -> int:
        return sum(part in call for call in self.calls)

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.of in line and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def wait_for(self, part: str, *, times: int = 1, seconds: float = 20.0) -> None:
        """Until a request like this has come so many times."""
        until = time.monotonic() + seconds
        while self.count(part) < times:
            assert time.monotonic() < until, f"no {part} among {self.calls}"
            time.sleep(0.02)


def make_user(
    name: str = "me", *, role: str = "write", orgs: dict[str, str] | None = None, scoped: Any = None
) -> dict[str, Any]:
    """What whoami says. orgs: organisation -> the role there. scoped: entity -> permissions of a fine-grained token."""
    token: dict[str, Any] = {"displayName": "laptop", "role": role}
    if scoped is not None:
        entities = [{"entity": {"type": "user", "name": who}, "permissions": may} for who, may in scoped.items()]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": entities}
    roles = [{"type": "org", "name": org, "roleInOrg": has} for org, has in (orgs or {}).items()]
    return {"type": "user", "name": name, "orgs": roles, "auth": {"type": "access_token", "accessToken": token}}


@contextmanager
def serve() -> Iterator[Hub]:
    """The stand-in, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def check_card(text: str) -> list[str]:
    """What the hub says of front matter, as far as its rules are documented (hub-docs, modelcard.md)."""
    front = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    data = yaml.safe_load(front.group(1)) if front else {}
    problems = [f"{key} must be a text" for key in _TEXTS if key in data and not isinstance(data[key], str)]
    for key in ("datasets", "metrics", "tags"):
        if key in data and not (isinstance(data[key], list) and all(isinstance(item, str) for item in data[key])):
            problems.append(f"{key} must be a list of texts")
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            if not result["task"].get("type") or not {"type", "name"} <= set(result["dataset"]):
                problems.append("a result needs task.type, dataset.type and dataset.name")
            for metric in result["metrics"]:
                if not isinstance(metric["value"], (int, float)) or metric["value"] != metric["value"]:
                    problems.append("a metric needs a number")
    return problems


_TEXTS = ("license", "license_name", "license_link", "pipeline_tag", "library_name", "base_model_relation")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet, or the client would wait for the second

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(200)

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        line = f"{self.command} {self.path}"
        self.hub.calls.append(line)
        fault = self.hub.take_fault(line)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.cut_after is not None:
            self.rfile.read(min(fault.cut_after, length))
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length) if length or "chunked" not in self.headers.get("Transfer-Encoding", "") else b""
        if fault is not None and fault.seconds:
            time.sleep(fault.seconds)
        if fault is not None and fault.status:
            self._answer(fault.status, {"error": f"as the test wants: {fault.status}"}, fault.headers)
            return
        with self.hub.lock:
            status, answer, headers = self._handle(body)
        if fault is not None and fault.drops_answer:
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, answer, headers)

    def _answer(self, status: int, answer: Any = None, headers: dict[str, str] | None = None) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer if answer is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        path = self.path.partition("?")[0]
        if path.startswith("/lfs/"):  # storage, which knows its addresses and no tokens
            return self._store(path, body)
        if path == "/api/validate-yaml":
            problems = check_card(json.loads(body)["content"])
            return 400 if problems else 200, {"errors": [{"message": told} for told in problems], "warnings": []}, {}
        user = self.hub.users.get(self.headers.get("authorization", "").removeprefix("Bearer "))
        if user is None:
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if path == "/api/whoami-v2":
            return 200, user, {}
        if path == "/api/repos/create":
            return self._create(user, json.loads(body))
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self._batch(match.group(1), json.loads(body))
        if match := re.fullmatch(r"/api/(model|dataset|space)s/([\w.-]+/[\w.-]+)(/.*)?", path):
            return self._on_repo(match.group(1), match.group(2), match.group(3) or "", body)
        return 404, {"error": f"the stand-in knows no {path}"}, {}

    def _create(self, user: dict[str, Any], asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{asked.get('organization') or user['name']}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        kind = asked.get("type", "model")
        if (kind, name) in self.hub.repos:
            return 409, {"error": "You already created this model repo", **url}, {}
        roles = {org["name"]: org["roleInOrg"] for org in user["orgs"]} | {user["name"]: "admin"}
        namespace = name.partition("/")[0]
        if user["auth"]["accessToken"]["role"] == "read" or roles.get(namespace, "read") == "read":
            return 403, {"error": f"You don't have the rights to create a model under the namespace {namespace}"}, {}
        private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        self.hub.repos[kind, name] = Repo(private=private, files={".gitattributes": b"*.safetensors lfs\n"})
        return 200, url, {}

    def _on_repo(self, kind: str, name: str, rest: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if rest in ("", "/revision/main"):
            siblings = [{"rfilename": path} for path in repo.files]
            return 200, {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings}, {}
        if not repo.writable:
            return 403, {"error": "You have read access but not the required permissions for this operation"}, {}
        if rest == "/auth-check/write":
            return 200, {}, {}
        if rest == "/preupload/main":
            return 200, {"files": [_preupload(repo, file) for file in json.loads(body)["files"]]}, {}
        assert rest == "/commit/main", rest
        return self._commit(name, repo, [json.loads(line) for line in body.splitlines()])

    def _batch(self, name: str, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                address = f"{self.hub.endpoint}/lfs/{wanted['oid']}"
                parts = range(1, -(-wanted["size"] // _PART) + 1)
                in_parts = {"chunk_size": str(_PART), **{f"{part}": f"{address}/{part}" for part in parts}}
                upload = {"href": address, "header": in_parts if self.hub.in_parts else {}}
                verify = {} if self.hub.in_parts else {"verify": {"href": f"{address}/verify"}}
                entry["actions"] = {"upload": upload, **verify}
            objects.append(entry)
        return 200, {"objects": objects, "transfer": "basic"}, {}

    def _store(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        oid, _, part = path.removeprefix("/lfs/").partition("/")
        if part == "verify":
            return 200 if oid in self.hub.objects else 404, {}, {}
        if part:
            self.hub.objects[f"{oid}/{part}"] = body
            return 200, {}, {"ETag": f"part {part}"}
        if self.command == "POST":  # all parts are there
            parts = [f"{oid}/{entry['partNumber']}" for entry in json.loads(body)["parts"]]
            body = b"".join(self.hub.objects.pop(name) for name in parts)
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the checksum differs"}, {}
        self.hub.objects[oid] = body
        return 200, {}, {}

    def _commit(self, name: str, repo: Repo, lines: list[Any]) -> tuple[int, Any, dict[str, str]]:
        values = [(line["key"], line["value"]) for line in lines]
        missing = [value["oid"] for key, value in values if key == "lfsFile" and value["oid"] not in self.hub.objects]
        if missing:
            return 400, {"error": f"not uploaded: {missing}"}, {}
        gone = [value["path"] for key, value in values if key == "deletedFile" and value["path"] not in repo.files]
        if gone:
            return 404, {"error": f"A file with this name doesn't exist: {gone}"}, {"X-Error-Code": "EntryNotFound"}
        for key, value in values:
            if key == "header":
                repo.messages.append(value["summary"])
                continue
            repo.files.pop(value["path"], None)
            repo.large.discard(value["path"])
            if key == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                repo.files[value["path"]] = self.hub.objects[value["oid"]]
                repo.large.add(value["path"])
        repo.commits.append([value["path"] for key, value in values if key != "header"])
        return 200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{repo.sha}", "commitOid": repo.sha}, {}


def _preupload(repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
    path = file["path"]
    is_large = path.endswith((".safetensors", ".bin")) or file["size"] >= _LARGE
    oid = None
    if path in repo.files:
        content = repo.files[path]
        oid = (
            hashlib.sha256(content).hexdigest()
            if path in repo.large
            else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        )
    return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}
