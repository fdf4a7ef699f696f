"""A stubborn process tree for supervisor tests: `python process_trees.py OUT_DIR`.

Three generations, each in a session of its own, ignoring SIGTERM; each writes its pid below OUT_DIR.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GENERATIONS = 3


def main(directory: Path, generation: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if generation + 1 < GENERATIONS:
        command = [sys.executable, __file__, str(directory), str(generation + 1)]
        subprocess.Popen(command, start_new_session=True)
    partial = directory / f"{generation}.tmp"
    partial.write_text(str(os.getpid()))
    partial.rename(directory / f"{generation}.pid")
    time.sleep(900)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
