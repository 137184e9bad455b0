"""What a loss must be to have a Hessian that can be trusted; everything else is refused, with the cause and the way out.

    refuse_unconnected      the loss is computed from the parameters that are varied
    refuse_random           the same value twice, finite, and no buffer written
    refuse_coupled          per-sample losses that do not see each other
    refuse_sum              one number a batch: the mean over its samples, nothing else
    refuse_false_gradient   autograd's gradient is the slope of the loss
    refuse_narrow           a float64 twin computes in float64 from end to end
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.batches import Batch
from analysis.objective import Objective
from landscape.errors import InputError

# dtype -> its rounding, the relative step of a difference, and the units of rounding that a loss of many terms may be off
STEPS = {torch.float64: (2.2e-16, 1e-6, 1e4), torch.float32: (1.2e-7, 5e-3, 32)}


def refuse_unconnected(objective: Objective, batch: Batch) -> None:
    """Refuse a loss that reaches no parameter of the model it is given: its Hessian would be zero, silently."""
    leaves = [p for p in objective.model.parameters() if p.requires_grad]
    with torch.enable_grad():
        value = objective.in_place(batch.some(1))
        try:
            reached = value.requires_grad and any(slope is not None for slope in
                                                  torch.autograd.grad(value, leaves, allow_unused=True))
        except RuntimeError as reason:
            raise InputError(f"the loss has no gradient ({str(reason).strip().splitlines()[0]}): checkpointing needs "
                             "use_reentrant=False") from reason
    if not reached:
        raise InputError("the loss does not depend on any parameter of the model: use the model that forward(model, batch) is "
                         "given, outside torch.no_grad(), and use_reentrant=False in checkpoints")


def refuse_unfit(objective: Objective, theta: Tensor, batch: Batch, is_scalar: bool) -> None:
    """Refuse losses that are random, not finite, or not those of independent samples."""
    losses = refuse_random(objective, theta, batch)
    (refuse_sum if is_scalar else refuse_coupled)(objective, theta, batch, losses)


def refuse_random(objective: Objective, theta: Tensor, batch: Batch) -> Tensor:
    """Evaluate the losses twice: a forward that draws random numbers or counts its calls has no Hessian."""
    before = {name: tensor._version for name, tensor in objective.fixed.items()}
    with torch.no_grad():
        first, second = (objective.sample_losses(theta, batch) for _ in range(2))
    if not torch.isfinite(first).all():
        raise InputError(f"the loss is not finite for {int((~torch.isfinite(first)).sum())} of {len(first)} samples: "
                         "the Hessian is not defined at these parameters")
    if not torch.equal(first, second):
        raise InputError("two evaluations of the loss differ: remove what is random in the forward (functional dropout needs "
                         "training=self.training)")
    if changed := [name for name, tensor in objective.fixed.items() if tensor._version != before[name]]:
        raise InputError(f"the forward writes into buffer {changed[0]!r} in evaluation mode, so that its products would "
                         "change: let it write where self.training alone")
    return first


def refuse_coupled(objective: Objective, theta: Tensor, batch: Batch, whole: Tensor) -> None:
    """Refuse a loss in which samples see each other, since the Hessian would depend on the split into batches."""
    parts = batch.halves()
    if parts is None:
        return
    with torch.no_grad():
        halves = torch.cat([objective.sample_losses(theta, part) for part in parts])
    if not torch.allclose(whole, halves, rtol=1e4 * torch.finfo(theta.dtype).eps, atol=1e3 * torch.finfo(theta.dtype).eps):
        raise InputError("a sample's loss changes with the other samples of its batch, so the Hessian would depend on the "
                         "batch size: normalize with running statistics, and branch on single samples only")


def refuse_sum(objective: Objective, theta: Tensor, batch: Batch, whole: Tensor) -> None:
    """Accept a loss of one number a batch only where it is a mean: equal to the size-weighted mean over two halves."""
    parts = batch.halves()
    if parts is None:
        return
    with torch.no_grad():
        mean = sum(len(part) * objective.sample_losses(theta, part)[0] for part in parts) / len(batch)
    if not torch.isclose(whole[0], mean, rtol=1e3 * torch.finfo(theta.dtype).eps, atol=0):
        raise InputError(f"the loss of a batch is {float(whole[0]):.6g}, the mean over its two halves {float(mean):.6g}: "
                         "expected a mean over samples; class weights and ignore_index make another quantity, pass a loss "
                         "with reduction='none'")


def refuse_false_gradient(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Compare autograd's gradient with the slope of the loss along it: detached values make them differ.

    In float64 where the network allows it. Refused only where the slopes over two steps agree with each other better than with
    the gradient: sharp losses and rounding are no evidence.
    """
    objective, theta, batch = _widest(objective, theta, batch.some(8))
    gradient = objective.gradient(theta, batch)
    length = float(gradient.norm())
    direction = gradient / max(length, torch.finfo(gradient.dtype).tiny)
    eps, step, units = STEPS[theta.dtype]
    step *= max(float(theta.norm()), 1.0)
    slope, loss = _slope(objective, theta, direction, batch, step)
    gap = abs(slope - length) - 1e-2 * length - units * eps * loss / step
    if gap > 0 and gap > 2 * abs(slope - _slope(objective, theta, direction, batch, 2 * step)[0]):
        raise InputError(f"the gradient is not that of the loss: its length is {length:.4g}, the slope of the loss along it "
                         f"{slope:.4g}; a detach or no_grad inside the forward leaves no Hessian")


def refuse_narrow(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Refuse as float64 what computes a part in less: its products would confirm nothing."""
    with torch.no_grad(), _Narrowing() as seen:
        try:
            objective.sample_losses(theta, batch)
        except (RuntimeError, NotImplementedError) as reason:
            raise InputError("there is no product in float64, the network or its loss holds values of another dtype "
                             f"({str(reason).strip().splitlines()[0]})") from reason
    if seen.operation:
        raise InputError(f"there is no product in float64, the network or its loss converts to less ({seen.operation}): use the "
                         "dtype of the inputs instead of .float()")


def _widest(objective: Objective, theta: Tensor, batch: Batch) -> tuple[Objective, Tensor, Batch]:
    """Return the objective in float64, or as it is where it has no float64 twin."""
    twin = objective.double(), theta.double(), batch.double()
    try:
        refuse_narrow(*twin[:2], twin[2].some(1))
    except InputError:
        return objective, theta, batch
    return twin


def _slope(objective: Objective, theta: Tensor, direction: Tensor, batch: Batch, h: float) -> tuple[float, float]:
    """Return the slope of the loss along a direction, over a step h to both sides, and the size of the loss there."""
    with torch.no_grad():
        ahead, behind = (objective.sample_losses(theta + sign * h * direction, batch).double() for sign in (1, -1))
    weights = batch.weights.double()
    return float(((ahead - behind) * weights).sum()) / (2 * h), float(((ahead.abs() + behind.abs()) * weights).sum()) / 2


class _Narrowing(TorchDispatchMode):
    """Watches for an operation that takes float64 and gives floats of less."""

    def __init__(self) -> None:
        super().__init__()
        self.operation = ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not self.operation and _is_narrow(result) and any(_is_double(x) for x in args):
            self.operation = str(function)
        return result


def _is_double(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_double(x) for x in value)
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _is_narrow(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_narrow(x) for x in value)
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
