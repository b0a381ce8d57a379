"""A server in a thread of the test's process, and a plain HTTP client."""

import http.client
import io
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image as PILImage

for package in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(package, reason="the extra [serve] is not installed")

from reid.commands.serve import listen
from reid.gallery.address import open_gallery
from reid.serve.app import make_server
from reid.serve.service import Service, Setup


class Client:
    """Talks to one port. forbidden: texts that no answer may contain, for example paths of the server."""

    def __init__(self, port: int, token: str = "", forbidden=()):
        self.port, self.token, self.forbidden = port, token, forbidden

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, images=(), headers=None, connection=None, **fields):
        """(status, content, headers). images: of (name, bytes) or paths. fields: of the form, lists for several."""
        headers = dict(headers or {})
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        body = None
        if images or fields:
            body = form(images, fields)
            headers["Content-Type"] = "multipart/form-data; boundary=limit"
        used = connection or self.connect()
        used.request(method, path, body, headers)
        response = used.getresponse()
        content = response.read().decode()
        if connection is None:
            used.close()
        for text in self.forbidden:
            assert text not in content
        if response.headers.get_content_type() == "application/json":
            content = json.loads(content)
        return response.status, content, response.headers

    def search(self, *images, **query):
        status, content, _ = self.ask("POST", "/v1/search?" + urlencode(query, doseq=True), images)
        assert status == 200, content
        return content

    def names(self, *images, **query) -> list[str]:
        return [answer["name"] for answer in self.search(*images, **query)["answers"]]

    def refused(self, status: int, *request, **fields) -> str:
        """The sentence of a refusal."""
        got, content, headers = self.ask(*request, **fields)
        assert got == status, content
        assert list(content) == ["detail"] and "\n" not in content["detail"]
        assert (headers["Retry-After"] is not None) == (status == 503)
        return content["detail"]


def form(images, fields) -> bytes:
    body = b""
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            body += f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for image in images:
        name, content = image if isinstance(image, tuple) else (Path(image).name, Path(image).read_bytes())
        head = f'--limit\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + b"--limit--\r\n"


@contextmanager
def serving(extractor, gallery: Path | str, setup: Setup | None = None, token: str | None = None):
    """A running server; yields its Client, which has the Service as an attribute."""
    service = Service(extractor, open_gallery(str(gallery)), setup or Setup())
    server, listening = make_server(service, token), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    client = Client(listening.getsockname()[1], token or "", (str(Path(gallery).parent), "Traceback"))
    client.service = service
    try:
        wait_for(lambda: server.started)
        yield client
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def wait_for(true, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def picture(seed: int, kind: str = "PNG", size=(32, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(pixels).resize(size).save(out, kind)
    return out.getvalue()
