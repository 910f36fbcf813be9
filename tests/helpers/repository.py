"""Where the repository and the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
SHARED = Path(os.environ.get("WISE_SHARED", ROOT.parent / "shared"))
"""Data that is not part of the repository; tests of it are skipped where it is absent."""
