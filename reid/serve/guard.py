"""Who may ask, how many at once, and for how long: checked before a request reaches the application."""

import asyncio
import hmac
import ipaddress
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from reid.errors import InputError
from reid.serve.metrics import Metrics
from reid.serve.service import Limits

CLOSED = ("/v1/", "/metrics")  # what needs the token; the page and its files show no data
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS")
RETRY = 1  # seconds
FIRST_BYTES = 10.0  # seconds in which a new connection has to send its headers
LEAST_TOKEN = 16
POLICY = (
    "default-src 'none'; script-src 'self'{inline}; style-src 'self'{inline}; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware. token: None where everyone on this machine may ask."""

    def __init__(self, app: Any, limits: Limits, metrics: Metrics, token: str | None):
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token
        self.running = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reply = Reply(send, scope["path"])
        started = time.perf_counter()
        try:
            await self.answer(scope, receive, reply)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # a client must not add any number of labels
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, path, reply.status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def answer(self, scope, receive, reply: "Reply") -> None:
        if refusal := self.refusal(scope):
            await refuse(*refusal)(scope, receive, reply)
            return
        body_read = False

        async def heard():
            nonlocal body_read
            message = await receive()
            body_read = not message.get("more_body", False)
            return message

        self.running += 1
        self.metrics.running.inc()
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, heard, reply)
        except TimeoutError:
            if reply.status:  # the client reads too slowly; uvicorn closes the connection
                return
            status = 503 if body_read else 408
            await refuse(status, f"the request took longer than {self.limits.seconds:g} s")(scope, receive, reply)
        finally:
            self.running -= 1
            self.metrics.running.dec()

    def refusal(self, scope) -> tuple[int, str] | None:
        """(status, reason) for a request that is not let in."""
        headers, path = Headers(scope=scope), scope["path"]
        if self.token is None:
            host, origin = headers.get("host", ""), headers.get("origin")
            if not is_loopback(name_of(host)):  # a foreign name that resolves to this machine
                return 403, "this server answers only to localhost; start it with a token for other names"
            if origin is not None and origin.partition("://")[2] != host:
                return 403, "pages of other sites may not use this server"
        elif path.startswith(CLOSED):
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                return 401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN"
        length = headers.get("content-length", "")  # FastAPI counts bodies that do not say their length
        if length.isdecimal() and int(length) > self.limits.body:
            return 413, f"the request is too large; the maximum is {self.limits.body:,} bytes"
        if self.running >= self.limits.requests and path != "/health":
            return 503, "too many requests at once; try again"
        return None


class Reply:
    """Sends a response with the headers of every response. status: its status, 0 before it was begun."""

    def __init__(self, send, path: str):
        self.send, self.status = send, 0
        self.policy = POLICY.format(inline=" 'unsafe-inline'" if path == "/docs" else "")

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = self.policy
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "no-referrer"
            headers["cache-control"] = "no-store"
        await self.send(message)


class Protocol(H11Protocol):
    """Closes a new connection whose client does not send its headers."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(FIRST_BYTES, self.close_silent)

    def close_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def refuse(status: int, reason: str) -> JSONResponse:
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 503:
        headers["retry-after"] = str(RETRY)
    return JSONResponse({"detail": reason}, status, headers)


def name_of(host: str) -> str:
    """The name in a Host header, without its port; "" if the header is malformed."""
    parts = re.fullmatch(r"(\[[^]]*\]|[^:]*)(:[0-9]*)?", host)
    return parts[1].strip("[]").lower() if parts else ""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(host: str, token: str | None) -> None:
    """Raises InputError where an address beyond this machine has no token, or the token is short."""
    if token is None and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines, so a token is needed: "
            "write one into a file and give --token_file FILE, or set RRID_TOKEN"
        )
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(f"the token needs at least {LEAST_TOKEN} printable ASCII characters on one line")
