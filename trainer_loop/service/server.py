"""The service at its address, until a signal asks it to stop."""

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


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet. Raises UserError where the address is not to be had."""
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
        told = f"host={host} port={port} cannot be bound: {error.strerror or error}"
        raise UserError(f"{told}; choose another port; port=0 takes any that is free") from error
    return bound


def is_public(bound: socket.socket) -> bool:
    """Whether other machines may reach the socket."""
    return not ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def spell_address(bound: socket.socket) -> str:
    """The address of HTTP of the socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, service: Service, bound: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT. Then new requests are refused, and those that wait are answered.

    A second signal ends the process at once.

    Args:
        on_start: Called when the socket listens.
    """
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    asyncio.run(_Server(config, service, on_start).serve(sockets=[bound]))
    service.close()


class _Server(uvicorn.Server):
    """Serves on after a signal, until the last request is answered."""

    def __init__(self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]):
        super().__init__(config)
        self._service = service
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not the method of the base: that would send the signal to this process again, whose exit code were not 0.
        self._service.is_stopping = True
        signal.signal(sig, signal.SIG_DFL)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._service.is_stopping and self._service.num_open == 0)
