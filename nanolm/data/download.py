"""Download of files into the cache.

A run, which others may have written, names the address of its text. Commands that read a run therefore download
nothing from it unless the user asks for it: see `only_if_asked`.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from nanolm import shell
from nanolm.errors import DataError, RunError, explain_os_error
from nanolm.files import user_path

# How to choose another cache folder, for hints.
CACHE_OPTION = "export NANOLM_CACHE=FOLDER"

# A larger file is refused, so that a server cannot fill the disk.
MAX_GIGABYTES = 10

# The settings whose addresses may be used and the option that allows all; None: everything may be downloaded.
_asked: tuple[Collection[str], str] | None = None


@contextlib.contextmanager
def only_if_asked(settings: Collection[str] = (), option: str = "") -> Iterator[None]:
    """Within the block, download only what the user asked for; files in the cache are used as before.

    Args:
        settings: the settings that the user typed, whose addresses may be used.
        option: what the user can add to the command to download; empty: the setting with its address.
    """
    global _asked
    before, _asked = _asked, (settings, option)
    try:
        yield
    finally:
        _asked = before


def require_asked(setting: str, address: str) -> None:
    """Refuse to download from the address of a setting that comes from a run and was not asked for.

    Raises:
        RunError: the hint says what to type.
    """
    if _asked is None or setting in _asked[0]:
        return
    wanted = _asked[1] or shell.join(f"{setting}={address}")
    raise RunError(
        f"{setting} of the run is not downloaded unasked, and is not in the cache: {address}",
        where=setting,
        hint=f"if you trust the address, add {wanted} to the command",
    )


def fetch(url: str, sha256: str | None, setting: str = "dataset.url") -> Path:
    """Return the cached copy of a file; download it, with a progress bar, if it is missing or damaged.

    Args:
        sha256: the expected checksum; None accepts any content.
        setting: the name of the setting that has the address.

    Raises:
        DataError: it cannot be downloaded, or the download has another SHA-256.
        RunError: the address is that of a run, and the user did not ask for the download.
        PathError: the cache cannot be written to.
        DiskError: the disk is full or fails.
    """
    folder = cache_folder() / "downloads"
    name = f"{(sha256 or hashlib.sha256(url.encode()).hexdigest())[:16]}-{url.rsplit('/', 1)[-1]}"
    if not _is_cached(folder / name, sha256):
        require_asked(setting, url)
    import pooch
    import requests

    by_hand = f"(sha256 {sha256 or 'not fixed'}) and set dataset.path=FILE"
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256}" if sha256 else None,
                fname=name,
                path=folder,
                downloader=_download,
            )
        )
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise DataError(
            f"cannot fetch {url}: {_root_cause(error)}",
            where=f"download into {folder}",
            hint=f"get the file by other means {by_hand}; dataset=python_docs needs no network",
        ) from error
    except ValueError as error:
        raise DataError(
            f"the download is not the expected file: {error}".splitlines()[0],
            where=url,
            hint=f"download it by hand {by_hand}",
        ) from error
    except OSError as error:
        raise explain_os_error(error, "the download cannot be saved", where=str(folder), option=CACHE_OPTION) from error


def cache_folder() -> Path:
    """Return the cache folder: $NANOLM_CACHE, or the operating system's cache folder of the user."""
    import platformdirs

    return user_path(os.environ.get("NANOLM_CACHE") or platformdirs.user_cache_dir("nanolm"))


def _is_cached(path: Path, sha256: str | None) -> bool:
    try:
        with path.open("rb") as file:
            return sha256 is None or hashlib.file_digest(file, "sha256").hexdigest() == sha256.lower()
    except OSError:
        return False


def _download(url: str, output: str, _: Any) -> None:
    """Download a file, as the downloaders of pooch do.

    Raises:
        requests.RequestException: it cannot be downloaded, is too large, or a redirect is refused.
        OSError: it cannot be written.
    """
    import requests
    from tqdm import tqdm

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None and (reason := _refused_redirect(resp.url, urljoin(resp.url, target))):
                resp.close()
                raise requests.exceptions.InvalidURL(reason)
            return target

    if urlsplit(url).scheme not in ("http", "https"):
        raise requests.exceptions.InvalidSchema("an address begins with https:// or http://")
    with Session() as session, session.get(url, stream=True, timeout=20) as response:
        response.raise_for_status()
        announced = response.headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() else 0
        bar = tqdm(total=size or None, unit="B", unit_scale=True, disable=not os.isatty(2), leave=True)
        with bar, Path(output).open("wb") as file:
            n_bytes = 0
            for block in response.iter_content(2**16):
                n_bytes += len(block)
                if max(n_bytes, size) > MAX_GIGABYTES * 1e9:
                    raise requests.RequestException(f"it has more than {MAX_GIGABYTES} GB")
                file.write(block)
                bar.update(len(block))


def _refused_redirect(before: str, after: str) -> str:
    """Return why a redirect is not followed; an empty string if it is followed."""
    old, new = urlsplit(before), urlsplit(after)
    if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
        return f"it redirects from {old.scheme} to {new.scheme}: {after}"
    if _is_private(new.hostname) and not _is_private(old.hostname):
        return f"it redirects to a private address: {after}"
    return ""


def _is_private(host: str | None) -> bool:
    """Whether a host, or one of its addresses, is not on the public internet."""
    try:
        found = {str(entry[4][0]).split("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        # With a proxy, names may not resolve here.
        return False
    return not all(ipaddress.ip_address(address).is_global for address in found)


def _root_cause(error: Exception) -> str:
    """Return the message of the innermost cause of a network error, on one line."""
    cause: BaseException = error
    while (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return " ".join(str(cause).split()) or type(cause).__name__
