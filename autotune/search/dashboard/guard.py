"""What the dashboard's server answers only to whom it is meant for.

Optuna Dashboard asks nobody who they are: whoever reaches it can delete studies. A page on another
site must not reach it through the browser of somebody who can.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: No other page may show the dashboard in a frame.
_POLICY, _UNFRAMED = "Content-Security-Policy", "frame-ancestors 'none'"


class Guarded:
    """An application that refuses requests whose ``Host`` is not an address of its own.

    A site can let its own name lead to 127.0.0.1, and would then have the dashboard's pages as its
    own (DNS rebinding). Its requests still bear that name.
    """

    def __init__(self, app: WSGIApplication, host: str) -> None:
        """Guard an application.

        Args:
            app: The application.
            host: The address or the name that its server listens on.
        """
        self._app, self._is_own = app, _own(host)

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse it with status 403."""
        names = [f"//{environ.get('HTTP_HOST', '')}"]
        if "HTTP_ORIGIN" in environ:
            names.append(environ["HTTP_ORIGIN"])
        if not all(map(self._is_own, map(_name_in, names))):
            start("403 Forbidden", _unframed([("Content-Type", "text/plain")]))
            return [b"This dashboard answers only under the address that it was started with.\n"]

        def start_unframed(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:  # noqa: ANN401 - WSGI's
            return start(status, _unframed(headers), *rest)

        return self._app(environ, start_unframed)


def _unframed(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    policies = [value for name, value in headers if name == _POLICY]
    others = [(name, value) for name, value in headers if name != _POLICY]
    return [*others, (_POLICY, ";".join([*policies, _UNFRAMED])), ("X-Frame-Options", "DENY")]


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _own(host: str) -> Callable[[str], bool]:
    """Whether a name that a request bears is one of the server's own."""
    if is_loopback(host):
        return is_loopback
    listens = _address(host)
    if listens is None or listens.is_unspecified:
        # On every address, or on a name's: no site can make a number lead elsewhere.
        names = {host, "localhost", socket.gethostname(), socket.getfqdn()}
        return lambda name: name in names or _address(name) is not None
    return lambda name: _address(name) == listens


def _name_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
