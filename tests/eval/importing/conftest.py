"""The evaluation's helpers are shared with the tests below."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
