"""The Hessian of a mean loss, H = grad^2 L(theta), L(theta) = (1/n) sum_i loss_i(theta), as a linear operator.

A sum over microbatches with exact sample weights, so that any split of the data, over batches or processes, gives the same
product. theta and the buffers are a snapshot taken at construction, in evaluation mode; the model itself is never changed.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from analysis.operators import along, blocks, checks, plan, products
from analysis.operators.batches import Batch, add_bytes, read
from analysis.operators.frozen import common_kind, frozen_copy, held_still
from analysis.operators.kernels import reproducible_kernels
from analysis.operators.objective import Objective, SampleLosses, Supervised
from analysis.operators.plan import Wishes
from analysis.operators.snapshot import Snapshot
from analysis.operators.trial import first_evaluation
from analysis.operators.verification import confirm, probe_vectors
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.parameters import flatten


class LossOperator(Snapshot):
    """The matrix of a mean loss of a model that lives on; `_objective_of` says which matrix."""

    def __init__(self, model: nn.Module, given: Callable[[], SampleLosses], batches: Iterable, *,
                 params: str | Sequence[str] | None = None, traces: dict | None = None, share: bool = True, **wishes: Any):
        self._given = given     # -> the losses as the user's loss says at that time
        self._wishes, self._traces = Wishes(**wishes), {} if traces is None else traces
        self._processes = Processes.present(share)
        with reproducible_kernels():
            self._processes.together(lambda: self._open(model, batches, params))
        self.num_matvecs = 0
        self.refresh()

    def _objective_of(self, model: nn.Module, names: tuple[str, ...], shapes: tuple[torch.Size, ...],
                      fixed: dict[str, Tensor]) -> Objective:
        """Return the objective of a frozen copy of the model."""
        raise NotImplementedError

    def _open(self, model: nn.Module, batches: Iterable, params: str | Sequence[str] | None) -> None:
        self._model, self._names = model, blocks.choose(model, params)
        self.device, self.dtype = common_kind(self._source())
        with _random_state_kept(self.device):       # a DataLoader draws from the global generator even where it does not shuffle
            self._data = read(batches, self.device, self.dtype, self._processes)
        self.num_samples = self._data.num_samples

    def refresh(self) -> None:
        """Take a new snapshot of the model's parameters and buffers, and choose and check the engine again."""
        with reproducible_kernels(), _random_state_kept(self.device):
            self._processes.together(self._take_snapshot)
            self._processes.refuse_different("batches, parameters or buffers", self._digest())
            self._processes.together(self._prepare_batches)
            self._choose_engine()

    def _take_snapshot(self) -> None:
        source = self._source()
        self._losses = self._given()
        self.theta = flatten(p.detach() for p in source.values())
        self.size = self.theta.numel()
        self._objective = self._objective_of(frozen_copy(self._model), self._names, tuple(p.shape for p in source.values()),
                                             held_still(self._model, source))

    def _prepare_batches(self) -> None:
        """Weigh every sample by 1/n; cut the batches, fill them up where the loss is per sample; check what is assumed."""
        objective, theta, whole = self._objective, self.theta, self._data.largest
        with first_evaluation(objective, whole):
            per_sample = not objective.is_scalar(theta, whole)
        for batch in (*self._data.own, whole):
            batch.weights.fill_(1.0 / self.num_samples)
        self._own, whole = [replace(batch, fillable=per_sample) for batch in self._data.own], replace(whole, fillable=per_sample)
        self._cut(self._wishes.microbatch)
        left = iter(self._pieces)
        for batch in self._own:
            with first_evaluation(objective, batch):
                checks.refuse_unfit(objective, theta, batch, plan.pieces_of(batch, left))
        if not any(len(batch) == len(whole) for batch in self._own):        # another process has the whole of it
            checks.refuse_unfit(objective, theta, whole, [whole])
        self._unreached = checks.refuse_unconnected(objective, self._pieces or [whole])
        checks.refuse_reduced(objective, theta, whole)
        checks.refuse_false_gradient(objective, theta, whole)
        checks.refuse_false_product(objective, theta, whole)

    def _cut(self, microbatch: str | int) -> None:
        self._pieces = plan.microbatches(self._own, microbatch, self.theta, self._wishes.fill)

    def _choose_engine(self) -> None:
        """Let the first process choose, and the others check its choice on their own batches."""
        here = self._processes
        chosen = here.together(lambda: self._chosen(self._wishes) if here.rank == 0 else None)
        self.engine, self._reasons, self.seconds, self._microbatch = here.first(
            chosen and (chosen.engine, chosen.reasons, chosen.seconds, chosen.products.microbatch))
        if here.count > 1:
            chosen = here.together(lambda: chosen or self._as_first())
        self._products = chosen.products if chosen else None
        if self._unreached:
            names = ", ".join(self._unreached[:3]) + ", ..." * (len(self._unreached) > 3)
            self._reasons |= {"parameters": f"their rows are zero, since the loss does not depend on them: {names}"}

    def _as_first(self) -> plan.Choice | None:
        self._cut(self._microbatch)
        return self._chosen(replace(self._wishes, engine=self.engine)) if self._pieces else None

    def _chosen(self, wishes: Wishes) -> plan.Choice:
        try:
            return plan.choose(self._objective, self.theta, self._pieces, wishes, self._traces)
        except InputError:
            if self.dtype == torch.float64:     # a plainer reason, where it is one
                checks.refuse_narrow(self._objective, self.theta, self._pieces[0].some(2))
            raise

    @property
    def reasons(self) -> dict[str, str]:
        """Why other engines were not taken, and why not everything stays in memory where it ran out, as late as in a product."""
        notes = self._products.notes if self._products else []
        told = [self._reasons[plan.IN_MEMORY]] if plan.IN_MEMORY in self._reasons else []
        return self._reasons | ({plan.IN_MEMORY: "; ".join(dict.fromkeys([*told, *notes]))} if notes else {})

    @property
    def choice(self) -> dict[str, str | int]:
        """What was chosen by timing and by memory: passed back as keywords, it gives the same bits."""
        alone = self._processes.count == 1
        return {"engine": self.engine, "microbatch": self._products.microbatch if alone else self._microbatch}

    def double(self) -> Snapshot:
        """Return the same matrix in float64, for second opinions; it keeps no microbatch between its products.

        Raises InputError where the network or its loss computes a part in less than float64 whatever its inputs.
        """
        with reproducible_kernels():
            return self._processes.together(self._twin)

    def gradient_error(self) -> float:
        """Return ||g - g_64||: how far rounding leaves `gradient` from the one in float64; NaN where there is none to compare.

        That is where the operator is in float64 itself, or the network computes a part in less whatever its inputs.
        """
        if self.dtype == torch.float64:
            return float("nan")

        def own() -> Tensor:
            theta, objective, batches = self._widened()
            return sum((objective.gradient(theta, batch) for batch in batches), torch.zeros_like(theta))
        try:
            with reproducible_kernels():
                wide = self._processes.sum(self._processes.together(own)[None])[0]
        except InputError:
            return float("nan")
        return float((self.gradient().double() - wide).norm())

    def _twin(self) -> Snapshot:
        theta, objective, batches = self._widened()
        prepare = self._prepare_twin(objective, theta, batches)
        return Snapshot(objective, theta, plan.Kept(prepare, batches, 0) if batches else None, self.num_samples, self._processes)

    def _widened(self) -> tuple[Tensor, Objective, list[Batch]]:
        """Return parameters, objective and batches in float64; refuse what computes a part in less."""
        theta, objective = self.theta.double(), self._objective.double()
        batches = [batch.double() for batch in self.batches]
        for batch in batches:
            batch.weights.copy_(batch.weights.bool().double() / self.num_samples)
        for batch in batches[:1]:
            checks.refuse_narrow(objective, theta, batch.some(2))
        return theta, objective, batches

    def _prepare_twin(self, objective: Objective, theta: Tensor, batches: list[Batch]) -> products.Prepare:
        """Return the engine of the twin: a trace of its own where there are microbatches enough to earn it back."""
        engine = self.engine.partition("-")[0]
        if engine == "linearized" and self.size >= products.SMALL and len(batches) > 2:
            prepare = products.linearized(objective, theta, self._traces)
            try:
                for batch in {batch.shapes: batch for batch in batches}.values():
                    self._confirm_twin(prepare, objective, theta, batch)
                return prepare
            except products.EngineError:
                pass
        return products.ENGINES["jvp" if engine == "linearized" else engine](objective, theta, {})

    def _confirm_twin(self, prepare: products.Linearized, objective: Objective, theta: Tensor, batch: Batch) -> None:
        """Compare the twin's trace with another engine, once; EngineError where they differ, or there is no trace."""
        mark, prepared = ("verified", *prepare.key(batch)), prepare(batch)
        if mark not in self._traces:
            self._traces[mark] = confirm("linearized", prepared.product(probe_vectors(theta)[:1]), objective, theta, batch)

    @property
    def held_bytes(self) -> int:
        """The memory that kept microbatches take."""
        return self._products.bytes if self._products else 0

    def release(self) -> None:
        """Let go of the kept microbatches; they are prepared again when they are next needed."""
        if self._products:
            self._products.release()

    def _refuse_moved(self) -> None:
        parameters = dict(self._model.named_parameters())
        pieces = self.theta.split([parameters[name].numel() for name in self._names])
        then = dict(self._objective.fixed) | dict(zip(self._names, pieces))
        for name, parameter in parameters.items():
            if not torch.equal(parameter.detach().reshape(-1), then[name].reshape(-1)):
                raise InputError(f"parameter {name!r} has changed since the operator was made: call refresh() to follow it")

    def _source(self) -> dict[str, nn.Parameter]:
        """Return the model's own parameters that form theta."""
        parameters = dict(self._model.named_parameters())
        return {name: parameters[name] for name in self._names}

    def _digest(self) -> str:
        """Return a hash of all that the processes must share."""
        found = hashlib.sha256(f"{self._data.digest}{self._names}".encode())
        if self._processes.count > 1:
            for tensor in (self.theta, *self._objective.fixed.values()):
                add_bytes(found, tensor)
        return found.hexdigest()


class HessianOperator(LossOperator):
    """The Hessian of a mean loss over given batches, at the model's present parameters.

    model     any module; its trainable parameters, or those named in `params`, are theta
    loss      loss(logits, targets) -> (B,), one value a sample. A module is copied, with `.reduction` "none"
    batches   a sequence or re-iterable of (inputs, targets), read twice to see that it does not change
    params    names or patterns, "layer1.*", or a block of `analysis.operators.blocks.parameter_blocks`: a block of the Hessian
    forward   forward(model, batch) -> (B,) losses, for batches or models of another form; `loss` is then None
    engine    "auto", or one of `analysis.operators.products.ENGINES`; `.reasons` says why the others were not taken
    memory    "auto", or bytes that kept microbatches may take; the others are computed anew for each product
    microbatch          "auto", or how many samples are evaluated at once
    expected_matvecs    how many products are to come: many pay for compiling
    traces    a dict that operators of one architecture and loss, constants included, share: each shape of batch is traced once
    share     whether the processes of an initialised torch.distributed group share the samples: see `landscape.distributed`

    The model is analysed in evaluation mode, whatever mode it is in: a copy uses BatchNorm's running statistics and no dropout,
    and the model keeps its mode, statistics and parameters. Raises InputError for what is then still no one function of theta
    (BatchNorm without running statistics, functional dropout, buffers written), one-shot iterators, changing batches, data sets
    without batches, batches that cannot be evaluated, losses that are not one value a sample, and networks that no engine
    serves; the text names the cause and the way out.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] | None, batches: Iterable, *,
                 forward: Callable[[nn.Module, Any], Tensor] | None = None, **options: Any):
        if forward is not None and loss is not None:
            raise InputError("loss is not called where forward is given: pass loss=None")
        super().__init__(model, lambda: forward or Supervised.of(loss), batches, **options)

    def _objective_of(self, model: nn.Module, names: tuple[str, ...], shapes: tuple[torch.Size, ...],
                      fixed: dict[str, Tensor]) -> Objective:
        return Objective(model, self._losses, names, shapes, fixed)

    def sample_curvatures(self, v: Tensor, batches: Iterable | None = None) -> Tensor:
        """Return v'H_i v of every sample's loss (n,) in float64, on the CPU: of all processes' samples, or of other batches'.

        Forward mode over forward mode, about four forward passes. The mean over the operator's own is v'Hv where torch nests
        forward mode rightly, which is for the caller to compare: see `analysis.operators.along`.
        """
        v = v.to(self.device, self.dtype)
        held = self.batches if batches is None else [piece for place, batch in enumerate(batches) for piece in Batch.of(
            batch, self.device, self.dtype, place).cut(self.choice["microbatch"])]

        def curvatures(batch: Batch) -> Tensor:
            def phi(a: Tensor) -> Tensor:
                return self._objective.sample_losses(self.theta + a * v, batch)
            return along.each_sample(phi, self.device)[2, :batch.num_samples].detach()
        with reproducible_kernels(), torch.enable_grad():
            found = torch.cat([torch.zeros(0, dtype=torch.float64), *(curvatures(batch).cpu() for batch in held)])
        return found if batches is not None else torch.cat(self._processes.gather(found))


def _random_state_kept(device: torch.device):
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
