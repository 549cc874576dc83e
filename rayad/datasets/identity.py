"""Patients without their names: keyed hashes of identifiers.

An identifier of few digits is found again from a plain hash by trying all; with a secret key (HMAC, RFC 2104) not.
The key must stay the same, because the splits are made from what it gives.
"""

import hashlib
import hmac
import os

from rayad.errors import OptionError

KEY = "RAYAD_PATIENT_KEY"
"""Environment variable that holds the key."""
SHORTEST = 16


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
