"""What a loss must be to have a Hessian that can be trusted; everything else is refused, with the cause and the way out.

    refuse_unconnected      the loss is computed from the parameters that are varied
    refuse_random           the same value twice, finite, and no buffer written
    refuse_coupled          per-sample losses that do not see each other, in the pieces that will be evaluated
    refuse_sum              one number a batch: the mean over its samples, nothing else
    refuse_reduced          a loss that was given with a reduction: the mean over its samples, nothing else
    refuse_false_gradient   autograd's gradient is the slope of the loss
    refuse_false_product    autograd's product is the slope of its gradient
    refuse_narrow           a float64 twin computes in float64 from end to end

Losses that should be equal are compared relative to the largest. Where a network fits its data, losses are small differences of
large logits, and float32 tells nothing: then float64 decides.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.operators.batches import Batch
from analysis.operators.objective import Objective
from landscape.errors import InputError, first_line

Kind = Callable[[Batch], Batch]                             # a batch as it is, or in float64
Evaluated = Callable[[Objective, Tensor, Kind], Tensor]     # losses at theta, in one of the two
SLOPES = (1e-9, 1e-7, 1e-5, 1e-3)   # steps over which a gradient is differenced, relative to |theta|
ROUNDED = ", nor does a loss of rounding alone: where a network fits its data, F.cross_entropy keeps its digits"
OFF = 1e-3      # of |theta|: how far away the second look is
# dtype -> its rounding, the relative step of a difference, and the units of rounding that a loss of many terms may be off
STEPS = {torch.float64: (2.2e-16, 1e-6, 1e4), torch.float32: (1.2e-7, 5e-3, 32)}


def refuse_unconnected(objective: Objective, batches: Iterable[Batch]) -> tuple[str, ...]:
    """Refuse a loss that reaches no parameter of the model it is given: its Hessian would be zero, silently.

    Returns the names of parameters in theta that no batch reaches, whose rows are zero.
    """
    left = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
    count = len(left)
    for batch in batches:
        reached = _reached(objective, batch, list(left.values()))
        left = {name: p for (name, p), seen in zip(left.items(), reached) if not seen}
        if not left:
            break
    if len(left) == count:
        raise InputError("the loss does not depend on any parameter of the model: use the model that forward(model, batch) is "
                         "given, outside torch.no_grad(), and use_reentrant=False in checkpoints")
    return tuple(name for name in left if name in objective.names)


def _reached(objective: Objective, batch: Batch, leaves: Sequence[Tensor]) -> list[bool]:
    """Tell which parameters the loss of a batch depends on."""
    with torch.enable_grad():
        value = objective.in_place(batch)
        if not value.requires_grad:
            return [False] * len(leaves)
        try:
            return [slope is not None for slope in torch.autograd.grad(value, leaves, allow_unused=True)]
        except RuntimeError as reason:
            raise InputError(f"the loss has no gradient ({first_line(reason)}): checkpointing needs "
                             "use_reentrant=False") from reason


def refuse_unfit(objective: Objective, theta: Tensor, batch: Batch, pieces: Sequence[Batch]) -> None:
    """Refuse losses that are random, not finite, or not those of independent samples; `pieces` are what will be evaluated.

    Once more a little way off theta, where what a weight of zero switches off is seen.
    """
    refuse_random(objective, theta, batch)
    is_whole = len(pieces) == 1 and len(pieces[0]) == len(batch)
    parts = batch.halves() if is_whole else pieces
    for place in (theta, displaced(theta)):
        (refuse_coupled if batch.fillable else refuse_sum)(objective, place, batch, parts)


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


def refuse_coupled(objective: Objective, theta: Tensor, batch: Batch, parts: Sequence[Batch] | None) -> None:
    """Refuse a loss in which samples see each other, since the Hessian would depend on the split into batches."""
    if parts is None:
        return

    def whole(f: Objective, t: Tensor, kind: Kind) -> Tensor:
        return f.sample_losses(t, kind(batch))

    def apart(f: Objective, t: Tensor, kind: Kind) -> Tensor:
        return torch.cat([f.sample_losses(t, kind(part))[:part.num_samples] for part in parts])
    if _differ(objective, theta, batch, whole, apart):
        raise InputError("a sample's loss changes with the other samples of its batch, so the Hessian would depend on the "
                         "batch size: normalize with running statistics, and branch on single samples only")


def refuse_sum(objective: Objective, theta: Tensor, batch: Batch, parts: Sequence[Batch] | None) -> None:
    """Accept a loss of one number a batch only where it is a mean: equal to the size-weighted mean over its parts."""
    if parts is None and len(batch) == 1 and batch.is_cuttable:
        return
    if parts is None:
        raise InputError("the loss is one number for a batch whose tensors do not all have one row a sample, so that nothing "
                         "tells whether it is a mean, nor over how many: pass a loss of one value a sample")

    def whole(f: Objective, t: Tensor, kind: Kind) -> Tensor:
        return f.sample_losses(t, kind(batch))[:1]

    def mean(f: Objective, t: Tensor, kind: Kind) -> Tensor:
        return sum(len(part) * f.sample_losses(t, kind(part))[:1] for part in parts) / len(batch)
    if found := _differ(objective, theta, batch, whole, mean):
        raise InputError(f"the loss of a batch is {found[0]:.6g}, the mean over its {len(parts)} parts {found[1]:.6g}: "
                         "expected a mean over samples; class weights and ignore_index make another quantity, pass a loss "
                         "with reduction='none'")


def refuse_reduced(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Refuse a loss whose own reduction is not the mean over samples, which is what is analysed in its place."""
    if getattr(objective.losses, "reduced", None) is None:
        return

    def own(f: Objective, t: Tensor, kind: Kind) -> Tensor:
        return f.evaluate(f.losses.claimed, t, kind(batch)).reshape(-1)[:1]

    def mean(f: Objective, t: Tensor, kind: Kind) -> Tensor:
        return f.sample_losses(t, kind(batch)).mean(0, keepdim=True)
    if found := _differ(objective, theta, batch, own, mean):
        raise InputError(f"the loss of a batch is {found[0]:.6g}, the mean over its samples {found[1]:.6g}, which is what has a "
                         "Hessian here: pass the loss with reduction='none' if that mean is meant")


def refuse_false_gradient(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Compare autograd's gradient with the slope of the loss along it: detached values make them differ.

    In float64 where the network allows it, and off theta, where units may sit at their kinks (of black pixels without a bias for
    one). Refused only where the slopes over two steps agree with each other better than with the gradient: sharp losses and
    rounding are no evidence.
    """
    objective, theta, batch = _widest(objective, displaced(theta), batch.some(8))
    gradient = objective.gradient(theta, batch)
    length = float(gradient.norm())
    direction = gradient / max(length, torch.finfo(gradient.dtype).tiny)
    eps, step, units = STEPS[theta.dtype]
    if theta.dtype == torch.float32 and length * float(theta.norm()) < units * eps:     # all of it may be rounding
        return
    step *= max(float(theta.norm()), 1.0)
    slope, loss = _slope(objective, theta, direction, batch, step)
    gap = abs(slope - length) - 1e-2 * length - units * eps * loss / step
    if gap > 0 and gap > 2 * abs(slope - _slope(objective, theta, direction, batch, 2 * step)[0]):
        raise InputError(f"the gradient is not that of the loss: its length is {length:.4g}, the slope of the loss along it "
                         f"{slope:.4g}; a detach or no_grad inside the forward leaves no Hessian{ROUNDED}")


def refuse_false_product(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Compare autograd's product with the slope of its gradient: a detached term may be flat in the gradient and curved in H.

    In float64 alone, off theta, on two samples. Over short steps hardly an activation meets its kink; over long ones a loss that
    is small beside its logits rounds less. Refused where they agree over no step, and over one the slope is known: over twice
    the step it is the same, and it is not 0 everywhere for being rounded.
    """
    wide = _wide(objective, displaced(theta), batch.some(2))
    if wide is None:
        return
    objective, theta, batch = wide
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=theta.dtype).to(theta.device)
    try:
        with objective.moved_to(theta):
            found = objective.product_in_place(batch)(v)
    except RuntimeError:        # no second derivative in reverse mode: the engines will tell
        return
    slopes = list(_known_slopes(objective, theta, v, batch, found))
    if None in slopes or not slopes:
        return
    slope = max(slopes)
    if slope > 0 or len(slopes) == len(SLOPES):
        raise InputError(f"the product is not that of the gradient: it is {float(found.norm()):.4g} long, the slope of the "
                         f"gradient {slope:.4g}; a detach or no_grad inside the loss leaves no Hessian{ROUNDED}")


def _known_slopes(objective: Objective, theta: Tensor, v: Tensor, batch: Batch, found: Tensor) -> Iterator[float | None]:
    """Yield how long the slope of the gradient along v is, step by step where it is known; None where it is the product found."""
    for share in SLOPES:
        h = share * max(float(theta.norm()), 1.0) / float(v.norm())
        near, far = (objective.differenced(theta, v, batch, times * h) for times in (1, 2))
        gap = float((found - near).norm())
        if gap <= 1e-2 * max(float(found.norm()), float(near.norm())):
            yield None
        elif gap > 2 * float((near - far).norm()):
            yield float(near.norm())


def displaced(theta: Tensor) -> Tensor:
    """Return a fixed point near theta, OFF max(|theta|, 1) away: at theta functions may agree, or have kinks, by chance."""
    generator = torch.Generator().manual_seed(1)
    step = torch.randn(theta.numel(), generator=generator, dtype=torch.float64)
    length = OFF * max(float(theta.norm()), 1.0) / float(step.norm())
    return theta + length * step.to(theta.device, theta.dtype)


def refuse_narrow(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Refuse as float64 what computes a part in less: its products would confirm nothing."""
    with torch.no_grad(), _Narrowing() as seen:
        try:
            objective.sample_losses(theta, batch)
        except (RuntimeError, NotImplementedError) as reason:
            raise InputError("there is no product in float64, the network or its loss holds values of another dtype "
                             f"({first_line(reason)})") from reason
    if seen.operation:
        raise InputError(f"there is no product in float64, the network or its loss converts to less ({seen.operation}): use the "
                         "dtype of the inputs instead of .float()")


def _widest(objective: Objective, theta: Tensor, batch: Batch) -> tuple[Objective, Tensor, Batch]:
    """Return the objective in float64, or as it is where it has no float64 twin."""
    return _wide(objective, theta, batch) or (objective, theta, batch)


def _wide(objective: Objective, theta: Tensor, batch: Batch) -> tuple[Objective, Tensor, Batch] | None:
    """Return the objective in float64, where it computes in float64 from end to end."""
    twin = objective.double(), theta.double(), batch.double()
    try:
        refuse_narrow(*twin[:2], twin[2].some(2))
    except InputError:
        return None
    return twin


def _differ(objective: Objective, theta: Tensor, batch: Batch, one: Evaluated,
            other: Evaluated) -> tuple[float, float] | None:
    """Return the first values of two ways to the same losses where they differ by more than rounding, else None."""
    eps = torch.finfo(theta.dtype).eps
    with torch.no_grad():
        a, b = (way(objective, theta, lambda part: part) for way in (one, other))
        if _close(a, b, 1e3 * eps * float(a.abs().max())):
            return None
        if theta.dtype != torch.float64 and (wide := _wide(objective, theta, batch.some(2))):
            a, b = (way(*wide[:2], Batch.double) for way in (one, other))
            same = _close(a, b, 1e3 * torch.finfo(torch.float64).eps * max(float(a.abs().max()), 1.0))
        else:
            same = _close(a, b, 1e3 * eps * max(float(a.abs().max()), 1.0))
    return None if same else (float(a[0]), float(b[0]))


def _close(a: Tensor, b: Tensor, limit: float) -> bool:
    return torch.allclose(a, b, rtol=1e4 * torch.finfo(a.dtype).eps, atol=limit)


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
