"""A local W&B server, with the part of the protocol that the real client needs to write runs and read them again.

It shows that our data pass unchanged through the client and the network. It does not show how the hosted service
behaves.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"
KEY = "0123456789" * 4


@dataclass
class Run:
    """The server's data of one run."""

    project: str
    name: str
    group: str = ""
    job_type: str = ""
    display_name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    created: int = 0

    def bucket(self) -> dict[str, Any]:
        """Return the run in the form of wandb-core."""
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "displayName": self.display_name,
            "description": "",
            "notes": "",
            "tags": self.tags,
            "config": json.dumps(self.config),
            "sweepName": None,
            "project": {"id": "p", "name": self.project, "entity": {"id": "e", "name": ENTITY}},
            "historyLineCount": len(self.history),
        }

    def node(self) -> dict[str, Any]:
        """Return the run in the form of wandb.Api."""
        stamp = f"2026-01-01T00:{self.created // 60 % 60:02}:{self.created % 60:02}Z"
        return {
            **self.bucket(),
            "projectId": 1,
            "state": self.state,
            "group": self.group,
            "jobType": self.job_type,
            "commit": None,
            "readOnly": False,
            "createdAt": stamp,
            "heartbeatAt": stamp,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(self.summary),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": None,
        }


class Server:
    """The state of a server, and its answers. Once `down` is set, it refuses everything."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.telemetry: list[str] = []
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any] | None:
        """Return the data of one GraphQL operation, or None if this server does not have the operation."""
        method = getattr(self, f"on_{operation.lower()}", None)
        return method(v) if method else None

    def on_viewer(self, v: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": []}
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}}

    on_getdefaultentity = on_viewer

    def on_getviewer(self, v: dict[str, Any]) -> dict[str, Any]:
        nothing: dict[str, Any] = {"edges": []}
        viewer = {"name": ENTITY, "admin": False, "deletedAt": None, "apiKeys": nothing, "teams": nothing}
        return {"viewer": self.on_viewer(v)["viewer"] | viewer}

    def on_upsertbucket(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v.get("name") or str(v["id"]).removeprefix("id-")
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(v.get("project") or "", name, created=len(self.runs)))
        if v.get("name"):  # a run that is named by its id is only edited
            run.state = "running"
        run.group, run.job_type = v.get("groupName") or run.group, v.get("jobType") or run.job_type
        run.display_name, run.tags = v.get("displayName") or run.display_name, v.get("tags") or run.tags
        run.config |= json.loads(v.get("config") or "{}")
        run.summary |= json.loads(v.get("summaryMetrics") or "{}")
        return {"upsertBucket": {"bucket": run.bucket(), "inserted": new}}

    def on_runresumestatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run, bucket = self.runs.get(v["name"]), None
        if run:
            bucket = run.bucket() | {
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
                "eventsTail": "[]",
                "wandbConfig": '{"t": 1}',  # a client has started it
            }
        return {"model": {"id": "p", "name": v["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def on_createrunfiles(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": f"id-{v['run']}", "uploadHeaders": [], "files": files}}

    def on_runs(self, v: dict[str, Any]) -> dict[str, Any]:
        """Return one page of runs; `group` is the only filter."""
        own = [run for run in self.runs.values() if run.project == v["project"]]
        if not own:
            return {"project": None}
        wanted = json.loads(v.get("filters") or "{}")
        assert set(wanted) <= {"group"}, wanted
        found = [run for run in own if run.group == wanted.get("group", run.group)]
        start = int(v.get("cursor") or 0)
        page = found[start : start + min(v["perPage"], 20)]  # small pages test the paging
        end = start + len(page)
        edges = [{"node": run.node(), "cursor": str(start + i + 1)} for i, run in enumerate(page)]
        info = {"endCursor": str(end), "hasNextPage": end < len(found)}
        runs = {"edges": edges, "pageInfo": info}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def on_run(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        return {"project": {"run": run.node() if run else None}}

    def on_runfiles(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[v["name"]]
        names = [name for name in (v.get("fileNames") or run.files) if name in run.files]
        edges = [{"node": self._file(run, name), "cursor": name} for name in names]
        files = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "1", "run": {"fileCount": len(names), "files": files}}}

    def _file(self, run: Run, name: str) -> dict[str, Any]:
        url = f"{self.url}/storage/{run.name}/{name}"
        size = len(run.files[name])
        known = {"id": f"f-{name}", "name": name, "url": url, "directUrl": url, "sizeBytes": size}
        return known | {"mimetype": "", "updatedAt": "2026-01-01T00:00:00Z", "md5": ""}

    def on_getprojects(self, v: dict[str, Any]) -> dict[str, Any]:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        edges = [{"node": self._project(name)} for name in sorted({run.project for run in self.runs.values()})]
        return {"models": {"pageInfo": page, "edges": edges}}

    def _project(self, name: str) -> dict[str, Any]:
        known = {"__typename": "Project", "id": "UHJvamVjdDp2MTpw", "name": name, "entityName": ENTITY}
        return known | {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}

    def on_projectinternalid(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "p", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    def on_upsertview2(self, v: dict[str, Any]) -> dict[str, Any]:
        """Change a view by its id. Without an id, make another view, whatever its name."""
        view_id = v.get("id") or f"view{len(self.views)}"
        new = view_id not in self.views
        stamp = {"updatedAt": "2026-01-01T00:00:00Z", "createdAt": "2026-01-01T00:00:00Z"}
        project = {"id": "p", "name": v["projectName"], "entityName": ENTITY}
        known = {key: v.get(key) for key in ("name", "displayName", "description", "type", "spec")}
        self.views[view_id] = {"id": view_id, **known, **stamp, "project": project}
        return {"upsertView": {"view": self.views[view_id], "inserted": new}}

    on_upsertview = on_upsertview2

    def on_view(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": view} for view in self.views.values() if view["name"] == v["viewName"]]
        return {"project": {"allViews": {"edges": edges}}}

    def on_specificreport(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"view": self.views.get(v["reportId"])}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Take lines of a run's history and summary, and its end."""
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.endswith((".jsonl", "summary.json")) else []
            if file == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = lines
            elif file == "wandb-summary.json":
                run.summary |= lines[-1]
        if body.get("complete"):
            run.state = "failed" if body.get("exitcode") else "finished"


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def body(self) -> bytes:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                content = gzip.decompress(content)
            return content

        def reply(self, content: bytes | dict[str, Any], status: int = 200) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if data is content else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            _, _, run, name = self.path.split("/", 3)
            with server.lock:
                found = server.runs[run].files.get(name) if run in server.runs else None
            self.reply(found if found is not None else b"", 200 if found is not None else 404)

        def do_PUT(self) -> None:
            content = self.body()
            _, _, run, name = self.path.split("/", 3)
            with server.lock:
                server.runs[run].files[name] = content
            self.reply({})

        def do_POST(self) -> None:
            content = self.body()
            if "/otel/" in self.path:
                server.telemetry.append(self.path)
                return self.reply({})
            if self.path.endswith("/file_stream"):
                with server.lock:
                    server.stream(self.path.split("/")[-2], json.loads(content))
                return self.reply({"exitcode": None, "limits": {}})
            asked = json.loads(content)
            match = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
            operation = match[1] if match else ""
            with server.lock:
                server.operations.append(operation)
                data = server.answer(operation, asked.get("variables") or {})
            self.reply({"errors": [{"message": f"no {operation} here"}]} if data is None else {"data": data})

    return Handler


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback: a killed client resets its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run a server in a thread of this process, until the end of the block."""
    server = Server()
    http = _Http(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
