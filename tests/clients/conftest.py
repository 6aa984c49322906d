"""What holds for all tests of other libraries' trainers: no host is asked for anything."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
