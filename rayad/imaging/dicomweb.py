"""Instances of a DICOMweb server (PS3.18): search, metadata, retrieval by their URLs, and storage.

A server is a place such as https://pacs/dicom-web. Credentials come from the environment: DICOMWEB_TOKEN (a bearer
token), or DICOMWEB_USER and DICOMWEB_PASSWORD.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from retrying import RetryError

from rayad import bounded, bounds
from rayad.errors import FormatError, StorageError

PAGE = 500
"""Instances that are asked for at once."""
MOST = 10_000_000
"""Instances of a list."""
CHUNK = 1 << 20
"""Bytes of an answer that are read at once."""
LARGEST = bounded.LARGEST_JSON
"""Bytes of an answer in JSON."""
LARGEST_AROUND = 1_000_000
"""Bytes of an answer around an image's file."""
CONNECT_S = 10
"""How long a server may take to take a connection."""
ANSWER_S = 300.0
"""How long an answer may take."""
RETRIED = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


_FIELDS = ("SeriesInstanceUID", "InstanceCreationDate", "InstanceCreationTime")
"""Asked for besides what every answer has (PS3.18, table 10.6.3-5)."""
_FLEETING = ("00080056", "00081190")
"""Where an instance is kept and got, which may change while it does not."""
_ODD = (requests.RequestException, RetryError, ValueError, TypeError, AttributeError, KeyError)
"""What comes of a server that cannot be reached, and of UIDs or JSON that are none of DICOM."""


@dataclass(frozen=True)
class Listed:
    """An instance as a search shows it."""

    url: str
    study: str
    """(0020,000D)."""
    instance: str
    """(0008,0018)."""
    sop_class: str
    """(0008,0016)."""
    said: str
    """Everything that the search shows; another text where the instance was replaced."""


def is_web(url: str) -> bool:
    """Is it a DICOMweb server, or an instance on one?"""
    return url.startswith(("http://", "https://"))


def instances(server: str) -> list[str]:
    """URLs of all instances of mammography (modality MG) and segmentations, sorted (QIDO-RS).

    Raises:
        StorageError: the server cannot be reached, refuses, or does not give all that it has.
    """
    return sorted(listed.url for modality in ("MG", "SEG") for listed in search(server, modality))


def search(server: str, modality: str, since: str = "") -> list[Listed]:
    """All instances of a modality, in the server's order (QIDO-RS).

    Args:
        since: StudyDate of the oldest, YYYYMMDD; "": of any date.

    Raises:
        StorageError: as `instances`; or the server does not give all that it has.
    """
    server = server.rstrip("/")
    filters = {"Modality": modality} | ({"StudyDate": f"{since}-"} if since else {})
    with _explained(server):
        return [_listed(server, row) for row in _search(_client(server), filters)]


def in_study(server: str, study: str) -> set[str]:
    """SOP instance UIDs of all that a study holds (QIDO-RS); StorageError as `instances`."""
    server = server.rstrip("/")
    with _explained(server):
        return {_value(row, "00080018") for row in _search(_client(server), {}, study)}


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


def store(server: str, datasets: Sequence[Dataset]) -> None:
    """Send instances (STOW-RS).

    Raises:
        StorageError: the server cannot be reached, refuses, or did not take all.
    """
    server = server.rstrip("/")
    with _explained(server, "store at"):
        answer = _client(server).store_instances(datasets)
    if failed := answer.get("FailedSOPSequence"):
        reasons = sorted({f"{int(item.get('FailureReason') or 0):04X}" for item in failed})
        raise StorageError(f"cannot store at {server}: {len(failed)} instances failed, reason {', '.join(reasons)}")


def _listed(server: str, row: Mapping[str, Any]) -> Listed:
    study, series, instance = (_value(row, key) for key in ("0020000D", "0020000E", "00080018"))
    content = json.dumps({key: value for key, value in row.items() if key not in _FLEETING}, sort_keys=True)
    url = f"{server}/studies/{study}/series/{series}/instances/{instance}"
    return Listed(url, study, instance, _value(row, "00080016"), content)


def _value(row: Mapping[str, Any], key: str) -> str:
    """ValueError if the server left it out."""
    values = row.get(key, {}).get("Value")
    if not values:
        raise ValueError(f"a search without ({key[:4]},{key[4:]})")
    return str(values[0])


def _search(client: DICOMwebClient, filters: dict[str, str], study: str | None = None) -> Iterator[dict[str, Any]]:
    """Page by page, however long the server's are, until there is nothing new: it may not know what an offset is.

    Raises:
        FormatError: the server has more, by its own word or because a full page came again, and does not give it.
    """
    seen_uids = set[str]()
    while True:
        page = client.search_for_instances(
            study, search_filters=filters, limit=PAGE, offset=len(seen_uids), fields=_FIELDS
        )
        rows = {_value(row, "00080018"): row for row in page}
        new_uids = rows.keys() - seen_uids
        if not new_uids and (getattr(_answer, "incomplete", False) or len(page) >= PAGE):
            raise FormatError(
                f"an incomplete list of instances: the server has more than {len(seen_uids)} and gives no more"
            )
        if len(seen_uids) + len(new_uids) > MOST:
            raise FormatError(f"a list of more than {MOST:,} instances; ask for those of some days")
        yield from (row for instance, row in rows.items() if instance in new_uids)
        if not new_uids:
            return
        seen_uids |= new_uids


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
    session.hooks["response"].append(_bound)
    client = DICOMwebClient(server, session=session, timeout=(CONNECT_S, 60))
    client.set_http_retry_params(max_attempts=4, wait_exponential_multiplier=250, retriable_error_codes=RETRIED)
    return client


_answer = threading.local()
"""`incomplete`: whether the last answer to this thread says that there is more (PS3.18, 10.6.3.2: Warning 299)."""


def _bound(response: requests.Response, **_: Any) -> None:
    """Read an answer here, so that the client never parses one that is too large, too late, or nests too deep."""
    _answer.incomplete = response.headers.get("Warning", "").lstrip().startswith("299")
    kinds = f"{response.request.headers.get('Accept')} {response.headers.get('Content-Type')}"
    is_json, until = "json" in kinds, time.monotonic() + ANSWER_S
    max_bytes = LARGEST if is_json else bounds.current().file_mb * 1_000_000 + LARGEST_AROUND
    content = bytearray()
    for part in response.iter_content(CHUNK):
        content += part
        bounded.require_size(len(content), "the answer", max_bytes)
        if time.monotonic() > until:
            raise FormatError(f"the answer was not here within {ANSWER_S:g} s")
    if content and is_json and response.ok:
        bounded.parse_json(bytes(content), "the answer")
    response._content = bytes(content)  # where requests keeps what was read


@contextmanager
def _explained(url: str, verb: str = "read") -> Iterator[None]:
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        hint = ": credentials come from DICOMWEB_TOKEN, or DICOMWEB_USER and DICOMWEB_PASSWORD"
        raise StorageError(f"cannot {verb} {url}: the server answers {code}{hint * (code in (401, 403))}") from error
    except FormatError as error:
        raise StorageError(f"cannot {verb} {url}: {error}") from error
    except _ODD as error:
        raise StorageError(f"cannot {verb} {url}: {type(error).__name__}") from error
