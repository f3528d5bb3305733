"""``kvern serve``: plan the memory, load, serve, and stop when told to."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvern.cli.model_flags import add_model_flags, engine_options, model_name
from kvern.config.flags import add_flags, resolve
from kvern.config.schema import ServerSettings
from kvern.core.errors import ConfigError
from kvern.progress_bar import ProgressBar

if TYPE_CHECKING:
    import uvicorn

    from kvern.engine.client import SocketEngineClient

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
SHUTDOWN_S = 30  # running answers may take this long after the first signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    add_flags(parser, ServerSettings)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound and not yet listening: a taken port is known before anything is loaded. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error}") from error
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _start(client: SocketEngineClient) -> None:
    """Load. SIGINT and SIGTERM end it at once by cancelling this task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await client.start()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            # uvicorn raises the signals it has handled once more when it is done; they have been obeyed by then.
            signal.signal(number, lambda *_: None)


async def _listen(server: uvicorn.Server, bound: socket.socket, host: str) -> None:
    """Serve until a signal ends it, saying the address once it answers."""
    running = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started and not running.done():
        await asyncio.sleep(0.005)
    if server.started:
        shown = f"[{host}]" if ":" in host else host
        print(f"serving on http://{shown}:{bound.getsockname()[1]}/v1", flush=True)
    await running


async def serve(model: str, options: dict[str, Any], settings: ServerSettings, bound: socket.socket) -> None:
    """Load ``model`` in an engine process and serve it on ``bound`` until SIGINT or SIGTERM."""
    from kvern.assembly.clients import make_client, open_text, state_folder
    from kvern.assembly.engine import EngineOptions
    from kvern.server.app import make_app
    from kvern.server.listen import make_server
    from kvern.server.options import ServerOptions
    from kvern.weights.hub import resolve as resolve_model

    name = settings.served_model_name or Path(model).name.removesuffix(".gguf").removesuffix(".safetensors")
    text = open_text(resolve_model(model), options.pop("chat_template", None))
    log = str(state_folder() / "events") if settings.event_log else None
    with closing(text), ProgressBar("loading", in_bytes=True) as bar:
        chosen = EngineOptions.of(model=model, name=name, event_log=log, **options)
        client = make_client(chosen, embed=False, progress=bar)
        try:
            await _start(client)
            bar.close()
            say(client.memory_plan)
            served = ServerOptions(
                model_names=(name,),
                api_keys=(settings.api_key,) if settings.api_key else (),
                sampling_defaults=text.sampling_defaults,
            )
            app = make_app(client, text.tokenizer, text.template, served)
            server = make_server(app, settings.host, settings.port, timeout_graceful_shutdown=SHUTDOWN_S)
            await _listen(server, bound, settings.host)
        finally:
            await client.close()


def run(arguments: argparse.Namespace) -> int:
    import uvloop

    settings = resolve(ServerSettings, arguments, os.environ).values
    model, options = model_name(arguments), engine_options(arguments)
    bound = bound_socket(settings.host, settings.port)
    if settings.host not in LOOPBACK and not settings.api_key:
        say(f"warning: anyone who reaches {settings.host} can use this server; set --api-key")
    with bound, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(model, options, settings, bound))
        except asyncio.CancelledError:
            return 130
    return 0
