"""Serves the application at its address, until a signal asks it to stop."""

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trainer_loop.errors import UserError
from trainer_loop.service.app import Service

_SECONDS_TO_READ = 5  # for clients to read their answers after the last one was made


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet. Raises UserError if the address is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={host}: it is no address of this machine: {error}") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _explain(error, host, port) from error
    return bound


def _explain(error: OSError, host: str, port: int) -> UserError:
    reason = f"host={host} port={port} cannot be bound: {error.strerror or error}"
    return UserError(f"{reason}; choose another port; port=0 takes any that is free")


def is_public(bound: socket.socket) -> bool:
    """Return whether other machines may reach the socket."""
    return not ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def spell_address(bound: socket.socket) -> str:
    """Return the HTTP address of the socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, service: Service, bound: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT. Then refuse new requests, and answer those that wait.

    A second signal ends the process at once. The server does not wait for a client that does not read its answer.

    Args:
        on_start: Called when the socket listens.

    Raises:
        UserError: Another process has started to listen at this address since the socket was bound.
    """
    config = uvicorn.Config(
        app,
        http="h11",  # it limits the size of headers; httptools, which uvicorn prefers, does not
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    try:
        asyncio.run(_Server(config, service, on_start).serve(sockets=[bound]))
    finally:
        service.close()


class _Server(uvicorn.Server):
    """Continues after a signal, until the last request is answered."""

    def __init__(self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]):
        super().__init__(config)
        self._service = service
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:
            assert sockets is not None
            raise _explain(error, *sockets[0].getsockname()[:2]) from error
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The method of the base class would send the signal to this process again, so that its exit code were not 0.
        self._service.is_stopping = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(_SECONDS_TO_READ, self._leave)
        await super().shutdown(sockets)

    def _leave(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._service.is_stopping and self._service.num_open == 0)
