"""For scripts that tests start."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def peak_mb():
    """The most memory that this process had; `ru_maxrss` would count what its parent had when it was started, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
