"""The example's modules are imported as its scripts import them: from the folder they lie in."""

import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "emoji_flux"

if str(EXAMPLE) not in sys.path:
    sys.path.insert(0, str(EXAMPLE))
