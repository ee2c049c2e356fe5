"""A bucket on this machine: the calls of Google's JSON API that checkpoints make, with their preconditions.

    python -m tests.gcs_server

It prints its address, and ends with its standard input. Objects live in memory and there is one bucket,
called "bucket"; "closed" answers that it may not be seen, "broken" that it cannot. gcp-storage-emulator,
which pip installs, ignores generations, by which TensorStore tells whether a file has changed.
"""

import http.server
import itertools
import json
import re
import sys
import threading
from email import message_from_bytes, policy
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
OTHERS = {"closed": 403, "broken": 501}
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"(?:/upload)?/storage/v1/b/([^/]+)/o")

_lock = threading.Lock()
_objects: dict[str, tuple[int, bytes]] = {}  # generation and content
_uploads: dict[str, bytes] = {}  # that have begun
_generations = itertools.count(1)


class Refused(Exception):
    """An answer without content."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self._query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            with _lock:
                self._route(url.path)
        except Refused as refusal:
            code = int(refusal.args[0])
            said = {"error": {"code": code, "message": f"the server says {code}"}}
            self._send(code, b"" if code == 304 else json.dumps(said).encode())

    def _route(self, path: str) -> None:
        bucket = re.search(r"/b/([^/]+)", path)
        if bucket is None or bucket[1] != BUCKET:
            raise Refused(OTHERS.get(bucket[1] if bucket else "", 404))
        if path == f"/storage/v1/b/{BUCKET}":
            self._json({"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        elif found := REWRITE.fullmatch(path):
            _, content = self._stored(unquote(found[2]))
            self._json({"done": True, "resource": self._store(unquote(found[4]), content)})
        elif LIST.fullmatch(path):
            if self.command == "GET":
                self._json(self._list())
            else:
                self._upload()
        elif found := OBJECT.fullmatch(path):
            self._one(unquote(found[2]))
        else:
            raise Refused(501)

    def _one(self, name: str) -> None:
        generation, content = self._stored(name)
        self._check(generation)
        if self.command == "DELETE":
            del _objects[name]
            self._send(204, b"")
        elif self._query.get("alt") == "media":
            status, headers = 200, {"x-goog-generation": str(generation)}
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(found[1]), int(found[2] or len(content) - 1)
                if first >= len(content):
                    raise Refused(416)
                headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
                status, content = 206, content[first : last + 1]
            self._send(status, content, headers)
        else:
            self._json(_described(name))

    def _stored(self, name: str) -> tuple[int, bytes]:
        if name not in _objects:
            raise Refused(404)
        return _objects[name]

    def _check(self, generation: int) -> None:
        """The preconditions; 0 is the generation of what is not there."""
        if int(self._query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412)
        if int(self._query.get("ifGenerationNotMatch", -1)) == generation:
            raise Refused(304)

    def _upload(self) -> None:
        kind = self._query.get("uploadType")
        if kind == "media":
            self._json(self._store(self._query["name"], self._body))
        elif kind == "multipart":
            self._json(self._store(*self._parts()))
        elif kind != "resumable":
            raise Refused(501)
        elif self._query.get("upload_id"):
            self._go_on(self._query["upload_id"])
        else:
            address = f"http://{self.headers['Host']}{self.path}&upload_id={next(_generations)}"
            self._send(200, b"", {"Location": address})

    def _go_on(self, upload: str) -> None:
        """A piece of an object, which is there once the last has come."""
        _uploads[upload] = _uploads.get(upload, b"") + self._body
        if self.headers["Content-Range"].endswith("/*"):
            self._send(308, b"", {"Range": f"bytes=0-{len(_uploads[upload]) - 1}"})
        else:
            self._json(self._store(self._query["name"], _uploads.pop(upload)))

    def _parts(self) -> tuple[str, bytes]:
        """Name and content of an object that comes in two parts."""
        head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
        boundary = b"--" + message_from_bytes(head, policy=policy.default).get_boundary("").encode()
        parts = self._body.split(boundary)
        _, meta = re.split(rb"\r?\n\r?\n", parts[1], maxsplit=1)
        _, content = re.split(rb"\r?\n\r?\n", boundary.join(parts[2:-1]), maxsplit=1)
        return json.loads(meta)["name"], re.sub(rb"\r?\n\Z", b"", content)

    def _store(self, name: str, content: bytes) -> dict[str, Any]:
        self._check(_objects[name][0] if name in _objects else 0)
        _objects[name] = next(_generations), content
        return _described(name)

    def _list(self) -> dict[str, Any]:
        prefix, delimiter = self._query.get("prefix", ""), self._query.get("delimiter", "")
        items: list[dict[str, Any]] = []
        prefixes: dict[str, None] = {}
        for name in sorted(_objects):
            if not name.startswith(prefix):
                continue
            inner, found, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
            if found:
                prefixes[prefix + inner + delimiter] = None
            else:
                items.append(_described(name))
        return {"kind": "storage#objects", "items": items, "prefixes": list(prefixes)}

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def _described(name: str) -> dict[str, Any]:
    generation, content = _objects[name]
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": BUCKET,
        "size": str(len(content)),
        "generation": str(generation),
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "timeCreated": "2026-01-01T00:00:00.000000Z",
        "updated": "2026-01-01T00:00:00.000000Z",
    }


def main() -> None:
    """Serves until the standard input ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
