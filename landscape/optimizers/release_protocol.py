"""The four-call stepping that the SSE-SAM README documents, on top of GroupSAM's arithmetic.

For each batch, for the head (n_i = 0) and then the tail (n_i = 1):

    forward, backward of the group's losses / |B|      -> compute_and_add_epsilon(n_i)
    forward, backward of the same                      -> compute_grad_sum_and_restore_p()

then one update(); and one update_rho() after each epoch. It takes four forwards and four backwards in both stages, so
`step(closure)`, which gives the same parameters, is the faster way.

Differences from the released class: parameters come back bit by bit, and the norm has no additive term, unless `restore`
and `norm_epsilon` ask for it; gamma 0 and 1 work;
a parameter without a gradient is left alone; calls out of order are errors. With batchnorm="clean" the running
statistics move in the first forward of a batch only.
"""

from contextlib import ExitStack

import torch

from landscape.batchnorm import running_statistics_held
from landscape.errors import InputError
from landscape.optimizers.ascent import Gradient, Move, add, displace, hand_over, put_back

GROUPS = ("head", "tail")  # by n_i


class FourCallProtocol:
    """Mixed into a GroupSAM with a head and a tail radius: it then answers the four calls."""

    _sum: Gradient | None = None     # gradients gathered since the last update; None between batches
    _move: Move | None = None        # the ascent to undo
    _displaced = False               # whether the parameters stand at its end
    _held: ExitStack | None = None   # keeps the running statistics still until the next update

    def compute_and_add_epsilon(self, n_i: int) -> None:
        """Move the parameters by rho g / ||g|| along the current gradients: n_i = 0 for the head, 1 for the tail."""
        if n_i not in (0, 1):
            raise InputError(f"n_i={n_i} is out of range: expected 0 for the head or 1 for the tail")
        if self.processes.count > 1:
            raise InputError("the four calls know one process only: use step(closure), which gives the same parameters")
        if self._displaced:
            raise InputError(
                "compute_and_add_epsilon() was called twice: call compute_grad_sum_and_restore_p() in between"
            )
        direction = self.direction(GROUPS[n_i], self._take_gradient())
        self._move, self._displaced = displace(direction, self.radii[GROUPS[n_i]], self.rule), True
        if self.batchnorm == "clean" and self._held is None:
            self._held = ExitStack()
            self._held.enter_context(running_statistics_held(self.model))

    def compute_grad_sum_and_restore_p(self) -> None:
        """Add the current gradients to the running sum and give the parameters their old values back."""
        if not self._displaced:
            raise InputError(
                "compute_grad_sum_and_restore_p() has nothing to undo: call compute_and_add_epsilon() first"
            )
        put_back(self._move)
        self._sum, self._displaced = add(self._sum or {}, self._take_gradient()), False

    @torch.no_grad()
    def update(self) -> None:
        """Take the base optimizer's step with the gathered gradients, and clear them."""
        if self._sum is None or self._displaced:
            raise InputError(
                "update() has no finished gradient: call compute_grad_sum_and_restore_p() for each group first"
            )
        hand_over(self.trained(), self._sum)
        self.base.step()
        self._opt_called = True  # schedulers made from this object look here for a step
        self._sum = None
        self.zero_grad()
        if self._held is not None:
            self._held.close()
            self._held = None

    def update_rho(self) -> None:
        """Count one training epoch as done, and switch when it was the last of stage I."""
        self.end_epoch()

    def _take_gradient(self) -> Gradient:
        gradient = {p: p.grad for p in self.trained() if p.grad is not None}
        self.zero_grad(set_to_none=True)  # the tensors above live on; the next backward makes new ones
        return gradient
