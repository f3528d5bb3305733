"""Listening: uvicorn with bounded request heads."""

from __future__ import annotations

from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


def bounded_protocol(max_head_bytes: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with a limit on request line and headers, which it does not have itself."""

    class BoundedProtocol(HttpToolsProtocol):
        head_bytes = 0
        in_head = True

        def data_received(self, data: bytes) -> None:
            if self.in_head:
                self.head_bytes += len(data)
            super().data_received(data)
            if self.in_head and self.head_bytes > max_head_bytes:
                self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
                self.transport.close()

        def on_message_begin(self) -> None:
            self.in_head, self.head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self.in_head, self.head_bytes = True, 0
            super().on_message_complete()

    return BoundedProtocol


def make_server(
    app: Starlette, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, **overrides: Any
) -> uvicorn.Server:
    """A uvicorn server; ``await server.serve()`` runs it in the running loop, ``server.run()`` in one of its own."""
    limits = app.state.service.options.limits
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "http": bounded_protocol(limits.header_bytes),
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "log_level": "warning",
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Server(uvicorn.Config(app, **{**settings, **overrides}))
