"""A short hash of settings, by which a result is known that was made of the same."""

import hashlib
import json
from typing import Any


def fingerprint(value: Any) -> str:
    """The hash of what is JSON, or has a text; stable over runs and machines."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
