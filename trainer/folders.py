"""Where runs and what belongs to bases are kept, when the caller names no folder."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path


def locate_home() -> Path:
    """Returns the user's store: what CONCEPTRY_HOME says, else the platform's folder for user data."""
    told = os.environ.get("CONCEPTRY_HOME")
    return Path(told).expanduser() if told else user_data_path("conceptry")
