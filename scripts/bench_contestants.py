"""Who is timed: our engines and other libraries, each as rows (k, d) -> rows H V of one Hessian, built in the open.

Every library is used as its documentation says, on its own copy of the network, in evaluation mode:

    pyhessian     data=(x, y) keeps the graph of the gradient; dataloader=[(x, y)] builds it for each product
    curvlinops    HessianLinearOperator, several vectors at once as columns
    eigenthings   HessianOperator of hessian-eigenthings 1; its finite differences are inexact, and so labelled
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.operators import products
from analysis.operators import HessianOperator
from landscape.data import load_data
from landscape.errors import InputError
from landscape.models import build_model
from landscape.parameters import flatten, split_like

Product = Callable[[Tensor], Tensor]        # rows (k, d) -> rows (k, d)
PEERS = {"pyhessian": "pyhessian", "curvlinops": "curvlinops", "eigenthings": "hessian_eigenthings"}    # module names
INEXACT, WRONG = 1e-3, 0.1      # relative errors beyond which a product is labelled so, unless float32 itself errs as much


@dataclass(frozen=True)
class Options:
    """What makes a problem the same in another process."""

    arch: str
    images: int
    data_dir: Path | None
    device: str
    block: int
    expected_matvecs: int = 0   # what our automatic choice is told of the products to come
    seed: int = 0


class Problem:
    """One network, one batch and vectors to multiply, with their products in float64 from plain double backward."""

    def __init__(self, options: Options):
        self.options, self.device = options, torch.device(options.device)
        self.x, self.y, self.data_name = _images(options)
        self.x, self.y = self.x.to(self.device), self.y.to(self.device)
        model = build_model(options.arch, 100, self.x.shape[1], self.x.shape[2], generator_seed=options.seed)
        self.model = _with_statistics(model.to(self.device), self.x).eval()
        self.size = sum(p.numel() for p in self.model.parameters())
        generator = torch.Generator().manual_seed(options.seed)
        V = torch.randn(max(4, options.block), self.size, generator=generator, dtype=torch.float64)
        self.V64 = (V / V.norm(dim=1, keepdim=True)).to(self.device)
        self.V = self.V64.float()

    def gradient(self) -> None:
        """One plain gradient, the unit of every ratio: forward, mean cross-entropy, backward."""
        self.model.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.x), self.y).backward()

    @cached_property
    def reference(self) -> Tensor:
        """H V in float64, by double backward: independent of everything that is timed."""
        return self._double_backward(self.V64)

    @cached_property
    def rounding(self) -> float:
        """The relative error of plain double backward in float32: units near the kink of relu differ there, for everyone."""
        return max(self.error(row, 1, found[None]) for row, found in enumerate(self._double_backward(self.V)))

    def _double_backward(self, V: Tensor) -> Tensor:
        model, total = copy.deepcopy(self.model).to(V.dtype), torch.zeros_like(V)
        leaves = list(model.parameters())
        for x, y in zip(self.x.split(32), self.y.split(32)):    # in pieces, to save memory
            loss = F.cross_entropy(model(x.to(V.dtype)), y, reduction="sum") / len(self.y)
            slope = flatten(torch.autograd.grad(loss, leaves, create_graph=True))
            for row, v in enumerate(V):
                total[row] += flatten(torch.autograd.grad(slope, leaves, v, retain_graph=True))
        return total

    def is_exact(self, error: float) -> bool:
        """Tell whether an error is one of rounding."""
        return error <= max(INEXACT, 3 * self.rounding)

    def vectors(self, turn: int, block: int) -> Tensor:
        """Return the vectors of one round: another one each time, or the whole block."""
        return self.V[:block] if block > 1 else self.V[turn % len(self.V)][None]

    def error(self, turn: int, block: int, found: Tensor) -> float:
        """Return the largest relative error of the products found."""
        exact = self.reference[:block] if block > 1 else self.reference[turn % len(self.V)][None]
        gaps = (found.detach().double() - exact).norm(dim=1) / exact.norm(dim=1)
        return float(torch.nan_to_num(gaps, nan=torch.inf).max())

    def own_model(self) -> nn.Module:
        """Return a copy of the network without gradients."""
        self.model.zero_grad(set_to_none=True)
        return copy.deepcopy(self.model)


@dataclass(frozen=True, eq=False)
class Built:
    """A contestant that is ready."""

    product: Product
    choice: dict[str, Any] = field(default_factory=dict)    # what an automatic engine chose, and why not the others
    operator: Any = None


@dataclass(frozen=True)
class Entry:
    """One row of the table: whose product, what it keeps between products, and how many vectors at once."""

    name: str
    side: str                   # ours, or a peer's name
    keeps: bool                 # whether it may keep anything between products
    make: Callable[[Problem, "Entry"], Built]
    block: int = 1
    engine: str = ""


def entries(engines: Sequence[str], peers: Sequence[str], block: int) -> list[Entry]:
    """Return the rows for some engines of ours and some libraries, blocks of `block` vectors among them (0 or 1: none)."""
    rows = []
    for engine in engines:
        kept = Entry(engine, "ours", True, ours, engine=engine)
        rows += [kept, replace(kept, name=f"{engine}, nothing kept", keeps=False)]
        rows += [replace(kept, name=f"{engine}, {block} vectors", block=block)] if block > 1 and engine == "auto" else []
    for peer in peers:
        rows += _PEER_ROWS[peer]
        rows += [replace(_PEER_ROWS[peer][0], name=f"curvlinops, {block} vectors", block=block)] \
            if peer == "curvlinops" and block > 1 else []
    return rows


def check_engines(engines: Sequence[str]) -> None:
    """Refuse an engine that is none of ours."""
    for name in engines:
        if name not in ("auto", *products.ENGINES):
            raise InputError(f"engines={name!r} is unknown: expected some of auto, {', '.join(products.ENGINES)}")


def ours(problem: Problem, entry: Entry) -> Built:
    """Build our operator with one engine, keeping what fits, or nothing."""
    operator = HessianOperator(problem.own_model(), nn.CrossEntropyLoss(), [(problem.x, problem.y)], engine=entry.engine,
                               memory="auto" if entry.keeps else 0, expected_matvecs=problem.options.expected_matvecs)
    return Built(operator.matmat, operator.choice | {"reasons": dict(operator.reasons)}, operator)


def pyhessian_kept(problem: Problem, entry: Entry) -> Built:
    from pyhessian.utils import hessian_vector_product
    engine = _pyhessian(problem, data=(problem.x, problem.y))
    return Built(lambda V: _rows(lambda v: hessian_vector_product(engine.gradsH, engine.params, split_like(v, engine.params)), V),
                 operator=_Cycle(engine.model))


def pyhessian_loader(problem: Problem, entry: Entry) -> Built:
    engine = _pyhessian(problem, dataloader=[(problem.x, problem.y)])

    def one(v: Tensor) -> Sequence[Tensor]:
        with quiet():
            return engine.dataloader_hv_product(split_like(v, engine.params))[1]
    return Built(lambda V: _rows(one, V), operator=_Cycle(engine.model))


def curvlinops(problem: Problem, entry: Entry) -> Built:
    with quiet():
        from curvlinops import HessianLinearOperator
    model = problem.own_model()
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(problem.x, problem.y)])
    return Built(lambda V: (operator @ V.T).T if len(V) > 1 else (operator @ V[0])[None])


def eigenthings(problem: Problem, entry: Entry) -> Built:
    from hessian_eigenthings import HessianOperator as TheirOperator
    from hessian_eigenthings import supervised_loss
    operator = TheirOperator(problem.own_model(), [(problem.x, problem.y)], supervised_loss(nn.CrossEntropyLoss()),
                             method=entry.engine)
    return Built(lambda V: torch.stack([operator.matvec(v) for v in V]))


_PEER_ROWS = {
    "pyhessian": [Entry("PyHessian, graph kept", "pyhessian", True, pyhessian_kept),
                  Entry("PyHessian, data loader", "pyhessian", False, pyhessian_loader)],
    "curvlinops": [Entry("curvlinops", "curvlinops", False, curvlinops)],
    "eigenthings": [Entry("hessian-eigenthings", "eigenthings", False, eigenthings, engine="autograd"),
                    Entry("hessian-eigenthings, differences", "eigenthings", False, eigenthings, engine="finite_difference")],
}


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the libraries warn of their own way of working."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


def _pyhessian(problem: Problem, **data: Any):
    from pyhessian import hessian
    with quiet():
        return hessian(problem.own_model(), F.cross_entropy, cuda=problem.device.type == "cuda", **data)


class _Cycle:
    """PyHessian's gradients hold the graph that made them, which holds the parameters: let go of them in time."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __del__(self):
        self.model.zero_grad(set_to_none=True)


def _rows(one: Callable[[Tensor], Sequence[Tensor]], V: Tensor) -> Tensor:
    return torch.stack([flatten(one(v)) for v in V])


def _images(options: Options) -> tuple[Tensor, Tensor, str]:
    """Return un-augmented CIFAR-100 images and labels where the folder is given, else random ones of that shape."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.data_dir is None:
        x = torch.randn(options.images, 3, 32, 32, generator=generator)
        return x, torch.randint(100, (options.images,), generator=generator), "random images of CIFAR's shape"
    data = load_data("cifar100", imb_factor=1, data_dir=options.data_dir, progress=False)
    if options.images > len(data.train.labels):
        raise InputError(f"images={options.images} is out of range: expected at most {len(data.train.labels)}")
    part = data.train.take(torch.randperm(len(data.train.labels), generator=generator)[:options.images].numpy())
    return data.inputs(part.images, torch.float32), part.labels, "un-augmented CIFAR-100 images"


@torch.no_grad()
def _with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """Give an untrained network the BatchNorm statistics of the batch, since activations grow without bound otherwise."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.momentum = None      # a plain average over the calls
    model.train()
    model(x)
    for module in norms:
        module.momentum = 0.1
    return model
