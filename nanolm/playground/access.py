"""Who may use the playground: the page itself, by its address with the token, on this machine."""

from __future__ import annotations

import hmac
from email.message import Message

from nanolm.playground.requests import ForbiddenError

ADDRESS = "127.0.0.1"

# A page of another name that resolves to this machine (DNS rebinding) sends its own name.
HOSTS = (ADDRESS, "localhost")


def allowed_place(method: str, path: str, headers: Message, token: str) -> str | None:
    """Return the address without the token; None if it lacks the slash after the token.

    Raises:
        ForbiddenError: the request is for another host, of a page of another origin, or has not the token.
    """
    host = headers.get("Host", "")
    if len(headers.get_all("Host", [])) != 1 or not _is_here(host):
        raise ForbiddenError(f"the host is {host!r}", where="Host", hint=f"one of: {', '.join(HOSTS)}")
    if _is_of_another_origin(method, headers, host):
        raise ForbiddenError("the request is of a page of another origin", where="Origin", hint="use the page itself")
    root, found, *rest = f"{path.split('?', 1)[0]}/".split("/", 2)
    if root or not hmac.compare_digest(found.encode(), token.encode()):
        raise ForbiddenError(
            "the address does not have the token of this playground",
            where="the address",
            hint="open the address that `nanolm playground` has printed",
        )
    return rest[0][:-1] if rest[0] else None


def _is_here(host: str) -> bool:
    """Return whether a host is this machine; any port, because a tunnel may have changed it."""
    name, colon, port = host.partition(":")
    return name.lower() in HOSTS and (not colon or (port.isascii() and port.isdigit()))


def _is_of_another_origin(method: str, headers: Message, host: str) -> bool:
    origins = headers.get_all("Origin", [])
    if any(origin != f"http://{host}" for origin in origins):
        return True
    if headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    # A link to the page may be on any other page.
    is_link = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return not (method == "GET" and is_link)
