"""Files fetched once into the cache."""

from __future__ import annotations

import os
from pathlib import Path

from nanolm.errors import DataError


def fetch(url: str, sha256: str) -> Path:
    """The cached copy of a file, downloaded with a progress bar when it is not there or is damaged.

    Raises:
        DataError: it cannot be fetched, or what came has another sha256.
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
                known_hash=f"sha256:{sha256}",
                fname=f"{sha256[:16]}-{name}",
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=20),
            )
        )
    except ValueError as error:
        raise DataError(
            f"what came is not the file that was asked for: {error}".splitlines()[0],
            where=url,
            mend=f"get it by hand (sha256 {sha256}) and say dataset.path=FILE",
        ) from error
    except (requests.RequestException, OSError) as error:
        raise DataError(
            f"cannot fetch {url}: {_reason(error)}",
            where=f"the network, on the way to {folder}",
            mend=f"get the file by other means (sha256 {sha256}) and say dataset.path=FILE; "
            "dataset=python_docs needs no network",
        ) from error


def cache_folder() -> Path:
    """Where downloads are kept: $NANOLM_CACHE, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("NANOLM_CACHE") or platformdirs.user_cache_dir("nanolm"))


def _reason(error: Exception) -> str:
    """The innermost words of a network error, in one line."""
    cause: BaseException = error
    while (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return " ".join(str(cause).split()) or type(cause).__name__
