"""For all tests: nothing that one run learns of a base is known to the next."""

from __future__ import annotations

import os

os.environ["WISE_CACHE"] = ""
