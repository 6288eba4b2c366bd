"""A small Hub on the loopback interface, for tests of pushing and pulling with the real client.

It checks what the real Hub checks and a client can get wrong: tokens, namespaces, private repositories, revisions, the
parent of a commit, sizes and SHA-256 sums of LFS objects, byte ranges, the metadata block of a model card. It does not
check quotas, licences' terms, gated access or Xet; it holds models and Spaces, in memory, and runs no Space. Clients
need HF_HUB_DISABLE_XET=1.

    with HubServer({"hf_alice": "alice"}, organisations={"lab": {"alice"}}) as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(home, token="hf_alice")})
        hub.files("alice/model"), hub.files("spaces/alice/app")
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_THRESHOLD = 10_000
SPACE_SDKS = ("gradio", "docker", "static")
SPACE_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".png")


@dataclass
class Commit:
    """A commit; `files` maps a path to its content and whether it is an LFS object."""

    sha: str
    parent: str | None
    message: str
    files: dict[str, tuple[bytes, bool]]


@dataclass
class Repo:
    id: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        for refs in (self.branches, self.tags, self.pulls):
            if revision in refs:
                return refs[revision]
        return revision if revision in self.commits else None

    def add(self, parent: str | None, message: str, files: dict[str, tuple[bytes, bool]]) -> str:
        listing = [(path, hashlib.sha256(content).hexdigest()) for path, (content, _) in sorted(files.items())]
        sha = hashlib.sha1(json.dumps([parent, message, listing, len(self.commits)]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, message, files)
        return sha


@dataclass
class Fault:
    """Answer a matching request with an error, or break it.

    Attributes:
        method: HTTP method.
        path: Regular expression that is searched in the path.
        status: Status to answer with; None lets the request through.
        times: How many requests it meets; -1 meets all.
        delay: Seconds to wait first.
        cut_after: Close the connection after so many bytes of the answer's or, for PUT, the request's body.
    """

    method: str
    path: str
    status: int | None = 500
    times: int = 1
    delay: float = 0.0
    cut_after: int | None = None


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class HubServer:
    """The server; use it as a context manager.

    Args:
        tokens: User of each valid token.
        organisations: Members of each organisation.
        port: A port to reuse, for a server that comes back; 0 takes a free one.
    """

    def __init__(self, tokens: dict[str, str], organisations: dict[str, set[str]] | None = None, port: int = 0) -> None:
        self.tokens, self.organisations = tokens, organisations or {}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.pending: dict[str, tuple[str, int]] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        self.port = port
        self._http: ThreadingHTTPServer | None = None

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after `stop` it comes back on the same port with the same repositories."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables that a subprocess needs before it imports any Hugging Face library."""
        found = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return found | ({"HF_TOKEN": token} if token is not None else {})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        repo = self.repos[repo_id]
        sha = repo.resolve(revision)
        assert sha is not None, f"{repo_id} has no revision {revision}"
        return {path: content for path, (content, _) in repo.commits[sha].files.items()}

    def history(self, repo_id: str, revision: str = "main") -> list[str]:
        """Commit messages of a branch, newest first."""
        repo, found = self.repos[repo_id], []
        sha = repo.resolve(revision)
        while sha is not None:
            found.append(repo.commits[sha].message)
            sha = repo.commits[sha].parent
        return found

    def put(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> None:
        """Commit files behind the client's back."""
        with self.lock:
            repo = self.repos.get(repo_id) or self.create(repo_id, private)
            head = repo.branches["main"]
            changed = {path: (content, len(content) > LFS_THRESHOLD) for path, content in files.items()}
            repo.branches["main"] = repo.add(head, "put", {**repo.commits[head].files, **changed})

    def create(self, repo_id: str, private: bool) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id, private)
        repo.branches["main"] = repo.add(None, "initial commit", {".gitattributes": (b"", False)})
        return repo

    def requests(self, method: str, pattern: str) -> list[tuple[str, str, int]]:
        """Requests so far whose path matches: method, path, status."""
        return [entry for entry in self.log if entry[0] == method and re.search(pattern, entry[1])]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Silence: the hub keeps its own log."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.fault = self._fault(parts.path)
        self.prefix = ""
        try:
            if self.fault is not None:
                time.sleep(self.fault.delay)
                if self.command == "PUT" and self.fault.cut_after is not None:
                    self.rfile.read(self.fault.cut_after)
                    self.close_connection = True
                    self.connection.close()
                    return
            body = self._body()
            if self.fault is not None and self.fault.status is not None:
                raise Refused(self.fault.status, "fault switch")
            with self.hub.lock:
                self._route(parts.path, body)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code is not None:
                headers["X-Error-Code"] = refused.code
            self._answer({"error": refused.message}, refused.status, headers)
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
            self.close_connection = True

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        wanted = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(wanted)
        if len(body) < wanted:  # the client died
            self.close_connection = True
            raise ConnectionResetError
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16):
            chunk = self.rfile.read(size)
            if len(chunk) < size:
                raise ConnectionResetError
            yield chunk
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.hub.log.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut_after is not None:
            self.wfile.write(body[: self.fault.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    # Who asks, and what may they do?

    def _user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        kind, _, token = header.partition(" ")
        if kind != "Bearer" or token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _may_write(self, user: str, namespace: str) -> bool:
        return user == namespace or user in self.hub.organisations.get(namespace, set())

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        """A repository that the user may read, and write unless it is for a pull request, which any reader may open."""
        user = self._user()
        repo = self.hub.repos.get(f"{self.prefix}{repo_id}")
        allowed = user is not None and self._may_write(user, repo_id.split("/")[0])
        if repo is None or (repo.private and not allowed):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and not allowed and not self.query.get("create_pr"):
            raise Refused(403, f"Forbidden: {user} has no write access to {repo_id}")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> Commit:
        sha = repo.resolve(unquote(revision))
        if sha is None:
            raise Refused(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return repo.commits[sha]

    # What is asked for?

    def _route(self, path: str, body: bytes) -> None:
        name = r"([\w.-]+/[\w.-]+)"
        # The same requests for both kinds of repositories.
        if path.startswith(("/api/spaces/", "/spaces/")):
            self.prefix, path = "spaces/", re.sub(r"^/api/spaces/", "/api/models/", path).removeprefix("/spaces")
        routes = [
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("GET", rf"/api/models/{name}", self._info),
            ("GET", rf"/api/models/{name}/revision/([^/]+)", self._info),
            ("GET", rf"/api/models/{name}/tree/([^/]+)", self._tree),
            ("GET", rf"/api/models/{name}/tree/([^/]+)/(.+)", self._tree),
            ("POST", rf"/api/models/{name}/paths-info/([^/]+)", self._paths_info),
            ("GET", rf"/api/models/{name}/refs", self._refs),
            ("POST", rf"/api/models/{name}/branch/(.+)", self._branch),
            ("POST", rf"/api/models/{name}/tag/(.+)", self._tag),
            ("POST", rf"/api/models/{name}/preupload/([^/]+)", self._preupload),
            ("POST", rf"/api/models/{name}/commit/([^/]+)", self._commit),
            ("POST", rf"/{name}\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/lfs/([0-9a-f]+)", self._lfs_put),
            ("POST", rf"/{name}\.git/info/lfs/verify", self._lfs_verify),
            ("GET", rf"/{name}/resolve/([^/]+)/(.+)", self._resolve),
            ("HEAD", rf"/{name}/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for method, pattern, serve in routes:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                serve(body, *found.groups())
                return
        raise Refused(404, f"this test Hub has no {self.command} {path}")

    def _whoami(self, _: bytes) -> None:
        user = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"name": name} for name, members in self.hub.organisations.items() if user in members]
        self._answer({"type": "user", "name": user, "orgs": orgs})

    def _create(self, body: bytes) -> None:
        user, wanted = self._user(), json.loads(body)
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if (kind := wanted.get("type", "model")) not in ("model", "space"):
            raise Refused(400, "this test Hub holds models and Spaces only")
        if kind == "space" and wanted.get("sdk") not in SPACE_SDKS:
            raise Refused(400, "a Space needs an sdk")
        namespace = wanted.get("organization") or user
        if not self._may_write(user, namespace):
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        repo_id = f"{namespace}/{wanted['name']}"
        if not re.fullmatch(r"[\w.-]+/[\w.-]{1,96}", repo_id):
            raise Refused(400, f"Invalid repository name {repo_id}")
        place = f"spaces/{repo_id}" if kind == "space" else repo_id
        answer = {"url": f"{self.hub.url}/{place}", "name": repo_id}
        if place in self.hub.repos:
            self._answer({**answer, "error": f"You already created this {kind} repo"}, 409)
            return
        self.hub.create(place, wanted.get("visibility") == "private")
        self._answer(answer)

    def _validate_yaml(self, body: bytes) -> None:
        problems = card_problems(json.loads(body)["content"])
        answer = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        self._answer(answer, 400 if problems else 200)

    def _info(self, _: bytes, repo_id: str, revision: str = "main") -> None:
        repo = self._repo(repo_id)
        commit = self._commit_of(repo, revision)
        card = _metadata(commit.files.get("README.md", (b"", False))[0].decode())
        self._answer(
            {
                "id": repo_id,
                "sha": commit.sha,
                "private": repo.private,
                "tags": (card or {}).get("tags", []),
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
                "cardData": card,
            }
        )

    def _tree(self, _: bytes, repo_id: str, revision: str, folder: str = "") -> None:
        commit = self._commit_of(self._repo(repo_id), revision)
        prefix = f"{unquote(folder).rstrip('/')}/" if folder else ""
        entries, folders = [], set()
        for path in sorted(commit.files):
            if not path.startswith(prefix):
                continue
            parents = path[len(prefix) :].split("/")[:-1]
            folders.update(prefix + "/".join(parents[: i + 1]) for i in range(len(parents)))
            if self.query.get("recursive", "").lower() == "true" or not parents:
                entries.append(_entry(path, *commit.files[path]))
        self._answer([{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in sorted(folders)] + entries)

    def _paths_info(self, body: bytes, repo_id: str, revision: str) -> None:
        commit = self._commit_of(self._repo(repo_id), revision)
        paths = parse_qs(body.decode()).get("paths", [])
        self._answer([_entry(path, *commit.files[path]) for path in paths if path in commit.files])

    def _refs(self, _: bytes, repo_id: str) -> None:
        repo = self._repo(repo_id)

        def listing(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        self._answer({"branches": listing(repo.branches, "heads"), "tags": listing(repo.tags, "tags"), "converts": []})

    def _branch(self, body: bytes, repo_id: str, branch: str) -> None:
        repo = self._repo(repo_id, write=True)
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        if unquote(branch) in repo.branches:
            raise Refused(409, f"Reference already exists: {branch}")
        repo.branches[unquote(branch)] = self._commit_of(repo, start).sha
        self._answer({})

    def _tag(self, body: bytes, repo_id: str, revision: str) -> None:
        repo, tag = self._repo(repo_id, write=True), json.loads(body)["tag"]
        if tag in repo.tags:
            raise Refused(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = self._commit_of(repo, revision).sha
        self._answer({})

    def _preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        commit = self._commit_of(self._repo(repo_id, write=True), revision)
        answers = []
        for file in json.loads(body)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            if len(sample) != min(512, file["size"]):
                raise Refused(400, f"{path}: the sample has {len(sample)} bytes")
            lfs = file["size"] > LFS_THRESHOLD or path.endswith(LFS_SUFFIXES)
            oid = None
            if path in commit.files:
                content, stored_lfs = commit.files[path]
                oid = hashlib.sha256(content).hexdigest() if stored_lfs else _git_oid(content)
            mode = "lfs" if lfs else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def _lfs_batch(self, body: bytes, repo_id: str) -> None:
        self._repo(repo_id)
        if self._user() is None:
            raise Refused(401, "Invalid username or password.")
        wanted = json.loads(body)
        if wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256":
            raise Refused(400, "only uploads with sha256")
        answers = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                # As on the real Hub, the address itself is the permission: the PUT carries no token.
                key = secrets.token_hex(16)
                self.hub.pending[key] = (item["oid"], item["size"])
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{key}"},
                    "verify": {"href": f"{self.hub.url}/{self.prefix}{repo_id}.git/info/lfs/verify"},
                }
            answers.append(answer)
        self._answer({"transfer": "basic", "objects": answers})

    def _lfs_put(self, body: bytes, key: str) -> None:
        if key not in self.hub.pending:
            raise Refused(403, "the upload address is unknown")
        oid, size = self.hub.pending[key]
        if len(body) != size or hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, f"{len(body)} bytes do not have the promised size or SHA-256")
        self.hub.objects[oid] = body
        self._answer({})

    def _lfs_verify(self, body: bytes, repo_id: str) -> None:
        self._repo(repo_id)
        wanted = json.loads(body)
        stored = self.hub.objects.get(wanted["oid"])
        if stored is None or len(stored) != wanted["size"]:
            raise Refused(404, "the object is not here")
        self._answer({})

    def _commit(self, body: bytes, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, write=True)
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise Refused(400, "the first line must be a header with a summary")
        if unquote(revision) not in repo.branches:
            raise Refused(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        head = repo.branches[unquote(revision)]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head].files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        sha = repo.add(head, lines[0]["value"]["summary"], files)
        pull = None
        if self.query.get("create_pr"):
            number = len(repo.pulls) + 1
            repo.pulls[f"refs/pr/{number}"] = sha
            pull = f"{self.hub.url}/{self.prefix}{repo_id}/discussions/{number}"
        else:
            repo.branches[unquote(revision)] = sha
        url = f"{self.hub.url}/{self.prefix}{repo_id}/commit/{sha}"
        self._answer({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": pull})

    def _apply(self, files: dict[str, tuple[bytes, bool]], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/") or path.startswith(".git/"):
            raise Refused(400, f"invalid path {path}")
        if key == "file" and value.get("encoding") == "base64":
            content = base64.b64decode(value["content"], validate=True)
            if path == "README.md" and (problems := card_problems(content.decode())):
                raise Refused(400, f"README.md: {problems[0]}")
            files[path] = (content, False)
        elif key == "lfsFile" and value["algo"] == "sha256":
            if value["oid"] not in self.hub.objects:
                raise Refused(400, f"{path}: the LFS object was never uploaded")
            files[path] = (self.hub.objects[value["oid"]], True)
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
                del files[name]
        else:
            raise Refused(400, f"cannot apply {key} {path}")

    def _resolve(self, _: bytes, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit_of(self._repo(repo_id), revision)
        if (path := unquote(path)) not in commit.files:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        content, lfs = commit.files[path]
        etag = hashlib.sha256(content).hexdigest() if lfs else _git_oid(content)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if ranged is None:
            self._answer(content, 200, headers)
            return
        start, end = int(ranged[1]), int(ranged[2]) if ranged[2] else len(content) - 1
        if start >= len(content):
            raise Refused(416, "range out of bounds")
        end = min(end, len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._answer(content[start : end + 1], 206, headers)


def card_problems(content: str) -> list[str]:
    """What is wrong with the metadata block of a model card, as far as this server knows the Hub's schema."""
    card = _metadata(content)
    if card is None:
        return [] if not content.startswith("---") else ["the metadata block is no YAML mapping"]
    words = ("license", "library_name", "pipeline_tag")
    problems = [f"{key} must be a string" for key in words if key in card and not isinstance(card[key], str)]
    for key in ("tags", "datasets", "metrics", "models", "base_model"):
        value = card.get(key, [])
        values = [value] if isinstance(value, str) and key != "tags" else value
        if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
            problems.append(f"{key} must be a list of strings")
        elif key in ("datasets", "models", "base_model") and not all(
            re.fullmatch(r"[\w.-]+(/[\w.-]+)?", item) for item in values
        ):
            problems.append(f"{key} must be ids of the Hub")
    if "sdk" in card:
        problems += [] if card["sdk"] in SPACE_SDKS else ["sdk must be one of a Space's"]
        colours = ("colorFrom", "colorTo")
        problems += [f"{key} must be a colour" for key in colours if card.get(key) not in (None, *SPACE_COLOURS)]
        versions = ("sdk_version", "python_version")
        problems += [f"{key} must be a string" for key in versions if not isinstance(card.get(key, ""), str)]
    for entry in card.get("model-index", []):
        if not entry.get("name") or not isinstance(entry.get("results"), list):
            problems.append("model-index: an entry needs a name and results")
            continue
        for result in entry["results"]:
            dataset = result.get("dataset", {})
            if not result.get("task", {}).get("type") or not dataset.get("type") or not dataset.get("name"):
                problems.append("model-index: a result needs task.type, dataset.type and dataset.name")
            if not all("type" in metric and "value" in metric for metric in result.get("metrics", [{}])):
                problems.append("model-index: a metric needs type and value")
    return problems


def _metadata(content: str) -> dict[str, Any] | None:
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", content, re.S)
    if found is None:
        return None
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return None
    return values if isinstance(values, dict) else None


def _entry(path: str, content: bytes, lfs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if lfs:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
