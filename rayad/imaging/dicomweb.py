"""Instances of a DICOMweb server (PS3.18): search, metadata and retrieval, by their URLs.

A server is a place such as https://pacs/dicom-web. Credentials come from the environment: DICOMWEB_TOKEN (a bearer
token), or DICOMWEB_USER and DICOMWEB_PASSWORD.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from retrying import RetryError

from rayad.errors import StorageError

PAGE = 500
"""Instances that are asked for at once."""
RETRIED = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


def is_web(url: str) -> bool:
    """Is it a DICOMweb server, or an instance on one?"""
    return url.startswith(("http://", "https://"))


def instances(server: str) -> list[str]:
    """URLs of all instances of mammography (modality MG) and segmentations, sorted (QIDO-RS).

    Raises:
        StorageError: the server cannot be reached, or refuses.
    """
    server = server.rstrip("/")
    with _explained(server):
        found = [row for modality in ("MG", "SEG") for row in _search(_client(server), modality)]
    keys = ("0020000D", "0020000E", "00080018")
    uids = [[str(row[key]["Value"][0]) for key in keys] for row in found]
    return sorted(f"{server}/studies/{study}/series/{series}/instances/{instance}" for study, series, instance in uids)


def metadata(url: str) -> Dataset:
    """The attributes of an instance but for its pixels (WADO-RS)."""
    server, uids = _parts(url)
    with _explained(url):
        return Dataset.from_json(_client(server).retrieve_instance_metadata(*uids))


def instance(url: str) -> Dataset:
    """An instance as the server stores it, in whatever transfer syntax (WADO-RS)."""
    server, uids = _parts(url)
    with _explained(url):
        return _client(server).retrieve_instance(*uids, media_types=(("application/dicom", "*"),))


def _search(client: DICOMwebClient, modality: str) -> Iterator[dict[str, Any]]:
    """Page by page."""
    offset = 0
    while True:
        page = client.search_for_instances(
            search_filters={"Modality": modality}, limit=PAGE, offset=offset, fields=["SeriesInstanceUID"]
        )
        yield from page
        if len(page) < PAGE:
            return
        offset += len(page)


def _parts(url: str) -> tuple[str, tuple[str, str, str]]:
    """The server, and the UIDs of study, series and instance."""
    server, _, path = url.rpartition("/studies/")
    parts = path.split("/")
    if not server or len(parts) != 5 or parts[1::2] != ["series", "instances"]:
        raise StorageError(f"{url}: an instance expected, .../studies/UID/series/UID/instances/UID")
    return server, (parts[0], parts[2], parts[4])


@lru_cache(maxsize=16)
def _client(server: str) -> DICOMwebClient:
    session = requests.Session()
    if token := os.environ.get("DICOMWEB_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"
    elif user := os.environ.get("DICOMWEB_USER"):
        session.auth = (user, os.environ.get("DICOMWEB_PASSWORD", ""))
    client = DICOMwebClient(server, session=session, timeout=60)
    client.set_http_retry_params(max_attempts=4, wait_exponential_multiplier=250, retriable_error_codes=RETRIED)
    return client


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        refused = ": credentials come from DICOMWEB_TOKEN, or DICOMWEB_USER and DICOMWEB_PASSWORD"
        raise StorageError(f"cannot read {url}: the server answers {code}{refused * (code in (401, 403))}") from error
    except (requests.RequestException, RetryError, ValueError) as error:  # ValueError: UIDs or JSON that are none
        raise StorageError(f"cannot read {url}: {type(error).__name__}") from error
