"""Ports: binding one, and who can reach it."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket

from memory_index.errors import ServiceError

FILES = 8192  # open ones; connections that have not been counted yet need some too


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen_on(host: str, port: int, *, option: str = "--port") -> socket.socket:
    """A TCP socket that listens. port 0: any that is free. option: that sets the port.

    Raises `ServiceError` if it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        busy = error.errno == errno.EADDRINUSE
        raise ServiceError(
            f"port {port} of {host} is used by another program"
            if busy
            else f"cannot listen on port {port} of {host}: {error.strerror or error}",
            hint=f"choose another with {option}, or {option} 0 for any that is free"
            if busy
            else f"see {option} and {option.replace('port', 'host')}",
        ) from error


def shown(host: str, port: int) -> str:
    """`HOST:PORT`, as it stands in an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def allow_open_files(num: int = FILES) -> None:
    """Let this process have so many files and connections open at once, or as many as it may be allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num if hard == resource.RLIM_INFINITY else min(num, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
