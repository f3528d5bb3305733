"""Makes the model of a device in ``rig/`` importable. Nothing in tests/pure needs arrays, files or sockets."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "rig"))
