"""Run a command that evaluates a surface, and kill this process at its point number N: `killed_surface.py N WORDS...`."""

import os
import signal
import sys

from analysis.surfaces.sweep import Sweep
from scripts.cli import main

made, at = [], Sweep.at


def counted(self, point):
    made.append(1)
    if len(made) > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return at(self, point)


Sweep.at = counted
sys.exit(main(sys.argv[2:]))
