"""A signal that asks a training to end: the step at hand is finished, a resume point written, and the process exits.

SIGTERM, what clusters send before they take a machine away, and SIGUSR1, which Slurm sends ahead of it, end with exit
status 0; SIGINT (Ctrl-C) with 130, as shells expect of an interrupt. A second signal ends the process at once, as a
kill would, which no file minds. One that is ignored when the process starts, as under nohup, stays ignored.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
ECHO_SECONDS = 1.0      # torchrun passes on what its workers were sent already: within this time it is the same signal
AGREE_EVERY = 8         # steps from one comparison between processes to the next


class Interruption:
    """Whether a signal has asked to end, between entering and leaving; call it after each step."""

    def __init__(self, *, quiet: bool = False):
        self.signal: signal.Signals | None = None   # the first one
        self._quiet, self._since, self._before = quiet, 0.0, {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():      # no other may set handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        """The signal's name; that of another process's signal is not known."""
        return self.signal.name if self.signal else "a signal to another process"

    @property
    def status(self) -> int:
        """The exit status once training has ended: 130 after SIGINT, else 0."""
        return 128 + signal.SIGINT if self.signal == signal.SIGINT else 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
            if not self._quiet:
                _say(f"{self.signal.name}: finishing the step at hand; once more ends at once\n")
        elif time.monotonic() - self._since >= ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class AgreedInterruption:
    """The same for a process of several: all answer True after the same step, soon after the first was asked to end.

    Every process must call it after each of its steps. It compares on the CPU, so that no GPU is waited for.
    """

    def __init__(self, asked: Interruption):
        import torch.distributed
        self._asked, self._steps, self._agreed = asked, 0, False
        self._group = torch.distributed.new_group(backend="gloo")

    def __call__(self) -> bool:
        self._steps += 1
        if not self._agreed and self._steps % AGREE_EVERY == 0:
            self._agreed = self._anyone()
        return self._agreed

    def _anyone(self) -> bool:
        import torch
        flag = torch.tensor([int(self._asked())])
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)


def shared_by_processes(asked: Interruption) -> Interruption | AgreedInterruption:
    """Return what training asks after each step: `asked` itself, or the processes' common answer where there are several."""
    from landscape.distributed import Processes
    return AgreedInterruption(asked) if Processes.present().count > 1 else asked


def _say(line: str) -> None:
    # Not print: the signal may have come in the middle of one, whose buffer is locked.
    try:
        os.write(sys.stderr.fileno(), line.encode())
    except (OSError, ValueError):   # closed, or no file at all
        return
