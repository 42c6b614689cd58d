"""No test reaches the network: only this machine's own addresses and sockets of the file system can be connected to.

`conftest.py` runs this file in the tests' own process and puts its folder on $PYTHONPATH, where every Python that
inherits it finds this file by its name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

_resolve = socket.getaddrinfo
_NAME = socket.gethostname()
_OWN = {None, "", "localhost", b"localhost", _NAME}
with contextlib.suppress(OSError):
    _OWN |= {address[0] for *_, address in _resolve(_NAME, None)}


def _is_here(host: object) -> bool:
    if host in _OWN:
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False


def _guarded(call):
    def guarded(self, *arguments):
        address = arguments[-1]
        if isinstance(address, tuple) and not _is_here(address[0]):
            raise OSError(f"The tests run without a network; {address[0]}:{address[1]} was asked for.")
        return call(self, *arguments)

    return guarded


def _resolved_here(host, *arguments, **options):
    if not _is_here(host):
        raise socket.gaierror(socket.EAI_NONAME, f"The tests run without a network; {host} was asked for.")
    return _resolve(host, *arguments, **options)


socket.getaddrinfo = _resolved_here
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(getattr(socket.socket, _name)))
