"""Patients without their names: keyed hashes of identifiers.

An identifier of few digits is found again from a plain hash by trying all; with a secret key (HMAC, RFC 2104) not.
The key must stay the same, because the splits are made from what it gives.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Sequence

from rayad.errors import OptionError
from rayad.terminal import warn_once

KEY = "RAYAD_PATIENT_KEY"
"""Environment variable that holds the key."""
SHORTEST = 16
USUAL = 8
"""Images that a patient has at most, mostly."""


def pseudonym(identifier: str, digits: int = 16) -> str:
    """The identifier's keyed SHA-256, hexadecimal.

    Raises:
        OptionError: there is no key of at least 16 characters in the environment.
    """
    key = os.environ.get(KEY, "")
    if len(key) < SHORTEST:
        raise OptionError(
            f"patient ids are hashed with a key: {KEY} must hold a secret of at least {SHORTEST} characters that stays "
            "the same for this archive; patient_ids=plain keeps the ids as they are"
        )
    return hmac.new(key.encode(), identifier.encode(), hashlib.sha256).hexdigest()[:digits]


def warn_of_odd(patients: Sequence[str]) -> None:
    """Say where identifiers seem not to tell patients apart, or to tell one from itself; none is named.

    Args:
        patients: whose each image is, before identifiers are hashed.
    """
    ids = set(patients)
    if len(ids) == 1 and len(patients) > USUAL:
        warn_once(f"all {len(patients)} images are of one patient; splits are by patient")
    if len(ids) == len(patients) > USUAL:
        warn_once(
            f"each of {len(ids)} images is a patient of its own; if some are of one, say so in a column patient "
            "or of a folder with patient_from=, since splits are by patient"
        )
    alike = len(ids) - len({_spelling(identifier) for identifier in ids})
    if alike:
        warn_once(
            f"{alike} of {len(ids)} patients have the id of another one but for zeros, case, blanks or separators; if "
            "they are one patient, write one id for it, since splits are by patient"
        )


def _spelling(identifier: str) -> tuple[str, ...]:
    """Equal for identifiers that differ in what people write now so, now otherwise."""
    return tuple(part.lstrip("0") for part in re.findall(r"[^\W\d_]+|\d+", identifier.lower()))
