"""An on-disk cache of what was measured once of a base model, so that no other process measures it again.

The folder is `wise` in the user's cache folder, or what WISE_CACHE names. An empty WISE_CACHE switches the cache off. A
file that cannot be read or written is no error: the measurement is made again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wise.memory.folder import replaced_file

logger = logging.getLogger(__name__)

VARIABLE = "WISE_CACHE"


def cache_folder() -> Path | None:
    """The folder of the cache; None where it is switched off or the user has no home."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wise"
    except RuntimeError:
        return None


def cached(kind: str, about: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """The JSON value that was measured of exactly this `about`: from the cache, or else from `measure`, and kept."""
    folder, about = cache_folder(), dict(about)
    if folder is None:
        return measure()
    from wise.memory.artifact import digest_of_json  # which loads torch

    file = folder / f"{kind}-{digest_of_json(about)[:20]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["about"] == about:
            return stored["found"]
    found = measure()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(file) as new:
            new.write_text(json.dumps({"about": about, "found": found}), encoding="utf-8")
    except OSError as error:
        logger.warning("%s: could not be kept (%s); it is measured anew next time", file, error)
    return found
