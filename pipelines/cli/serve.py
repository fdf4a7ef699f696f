"""`m4v serve`: the web page over this workspace's ledger and store."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import sys
from typing import Annotated

import typer

from m4v.core.errors import ConfigError
from pipelines.settings import load_settings
from pipelines.workspace import Workspace

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8770,
    read_only: Annotated[bool, typer.Option("--read-only", help="No actions, whatever a visitor's role.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve runs, artifacts, lineage, clips, channels, evaluation and plans as pages, until Ctrl-C.

    Visitors are viewers unless an auth proxy names them (section `access` of the settings).
    """
    import uvicorn

    from pipelines.web.app import create_app

    listening = listen(host, port)
    with listening:
        workspace = Workspace.open()
        app = create_app(workspace, read_only=read_only, names=own_names(workspace, listening))
        address = url_of(listening)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="on",
            timeout_graceful_shutdown=3,
        )  # fmt: skip
        sys.stdout.write(f"serving on {address} (Ctrl-C ends)\n")
        sys.stdout.flush()
        if open_:
            typer.launch(address)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        # uvicorn raises the signal again once everything is closed, unless whoever started us ignores it.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        sys.stdout.write("stopped\n")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises ConfigError when the host is unknown or the port is taken or refused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise ConfigError(f"host is unknown: {reason}", value=host, where="--host") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen there: {error.strerror}", value=f"{host}:{port}", where="--host, --port",
            next_step="choose another --port; 0 takes a free one",
        ) from None  # fmt: skip
    return bound


def own_names(workspace: Workspace, bound: socket.socket) -> tuple[str, ...]:
    """Names to answer to: those of the loopback address when that is where the server listens, unless an auth proxy
    stands before it and passes other names on; else any."""
    local = ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback
    proxied = load_settings(workspace).access.user_header is not None
    return LOOPBACK if local and not proxied else ()


def url_of(bound: socket.socket) -> str:
    """The address a browser takes; a socket on every address is reached by localhost."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
