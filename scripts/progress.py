"""Progress of a long computation: a bar on a terminal, a plain line now and then elsewhere, nothing with `--quiet`.

Everything goes to standard error, so that standard output carries results alone.
"""

import sys
import time

EVERY_SHARE = 0.1      # a plain line at each tenth of the work ...
EVERY_SECONDS = 10.0   # ... or when the last line is this old


class Progress:
    """Show how far a computation of `total` steps is (None: unknown). Use it in a `with` statement.

    `initial` steps were done by an earlier process: they count as done, not as speed. `recalled` tells of more of them.
    """

    def __init__(self, total: int | None, description: str = "", *, quiet: bool = False, unit: str = "step", initial: int = 0):
        self.total, self.description, self.unit = total, description, unit
        self.done = self.initial = initial
        self._going_on = initial > 0        # to be said before the first step that is new
        self._new = True                    # whether the next step is none that `recalled` told of
        self._quiet, self._bar = quiet, None
        self._start = self._last_time = time.monotonic()
        self._last_done = initial

    def __enter__(self) -> "Progress":
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm
            self._bar = tqdm(total=self.total, desc=self.description, unit=self.unit, dynamic_ncols=True, initial=self.initial,
                             smoothing=0)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._last_done:
            self._print_line()

    def update(self, n: int = 1) -> None:
        """Count `n` more steps as done."""
        if self._going_on and self._new:
            self._say_where()
        self._new = True
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._is_due():
            self._print_line()

    def skip(self, n: int) -> None:
        """Count `n` steps as done that took no work: what they make was stored, or is not needed."""
        self.done += n
        self.initial += n
        if self._bar is not None:
            self._bar.initial += n
            self._bar.update(n)
        elif self._is_due():
            self._print_line()

    def recalled(self, n: int) -> None:
        """Take `n` of the steps counted by now, or by the next `update`, for those of an earlier process."""
        self.initial += n
        self._going_on, self._new = True, False
        if self._bar is not None:
            self._bar.initial += n

    def set_description(self, description: str) -> None:
        """Say what is computed now."""
        self.description = description
        if self._bar is not None:
            self._bar.set_description(description)

    def _is_due(self) -> bool:
        tenth = self.total and self.done - self._last_done >= EVERY_SHARE * self.total
        return bool(tenth or self.done == self.total or time.monotonic() - self._last_time >= EVERY_SECONDS)

    def _say_where(self) -> None:
        self._going_on = False
        of = f" of {self.total}" if self.total else ""
        if not self._quiet:
            (self._bar.write if self._bar is not None else print)(
                f"{self.description or 'progress'}: continuing at {self.unit} {self.done + 1}{of}", file=sys.stderr)

    def _print_line(self) -> None:
        self._last_done, self._last_time = self.done, time.monotonic()
        if not self._quiet:
            print(f"{self.description or 'progress'}: {self._position()}", file=sys.stderr, flush=True)

    def _position(self) -> str:
        seconds = self._last_time - self._start
        if not self.total:
            return f"{self.done} {self.unit}s, {seconds:.0f} s"
        position = f"{self.done}/{self.total} ({self.done / self.total:.0%}), {seconds:.0f} s"
        fresh = self.done - self.initial
        return position + (f", about {seconds / fresh * (self.total - self.done):.0f} s left" if fresh > 0 else "")
