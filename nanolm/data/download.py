"""Files fetched once into the cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from nanolm.errors import DataError, explain_os_error
from nanolm.files import user_path


def fetch(url: str, sha256: str | None) -> Path:
    """The cached copy of a file, downloaded with a progress bar when it is not there or is damaged.

    Without a sha256 whatever came once is taken.

    Raises:
        DataError: it cannot be fetched, or what came has another sha256.
        PathError: the cache cannot be written to.
        DiskError: the same, because the disk is full or fails.
    """
    import pooch
    import requests

    folder = cache_folder() / "downloads"
    name = url.rsplit("/", 1)[-1]
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256}" if sha256 else None,
                fname=f"{(sha256 or hashlib.sha256(url.encode()).hexdigest())[:16]}-{name}",
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=20),
            )
        )
    except ValueError as error:
        raise DataError(
            f"what came is not the file that was asked for: {error}".splitlines()[0],
            where=url,
            hint=f"get it by hand (sha256 {sha256 or 'not fixed'}) and say dataset.path=FILE",
        ) from error
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise DataError(
            f"cannot fetch {url}: {_reason(error)}",
            where=f"the network, on the way to {folder}",
            hint=f"get the file by other means (sha256 {sha256 or 'not fixed'}) and say dataset.path=FILE; "
            "dataset=python_docs needs no network",
        ) from error
    except OSError as error:
        option = "export NANOLM_CACHE=FOLDER"
        raise explain_os_error(error, "the file cannot be kept", where=str(folder), option=option) from error


def cache_folder() -> Path:
    """Where downloads are kept: $NANOLM_CACHE, else the user's cache folder."""
    import platformdirs

    return user_path(os.environ.get("NANOLM_CACHE") or platformdirs.user_cache_dir("nanolm"))


def _reason(error: Exception) -> str:
    """The innermost words of a network error, in one line."""
    cause: BaseException = error
    while (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return " ".join(str(cause).split()) or type(cause).__name__
