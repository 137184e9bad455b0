"""What several processes compute together and one computes alone, for comparison: `torchrun shared_work.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import torch
from networks import InPlaceResidual, images, losses, make

from analysis.operators import GaussNewtonOperator, HessianOperator
from analysis.spectra import lanczos
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import krylov
from landscape.distributed import init_from_environment, is_main, main_first
from landscape.errors import InputError

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SPLITS = {"single samples": (1,) * 7, "ragged": (3, 3, 1), "one batch": (7,)}


def batches(sizes, dtype=torch.float64):
    return list(zip(*(part.split(sizes) for part in images(sum(sizes), dtype=dtype))))


def block(dtype=torch.float64, size=123):
    return torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def measure() -> dict[str, np.ndarray]:
    """Return every quantity that must not depend on the number of processes."""
    found = {}
    for name, dtype in DTYPES.items():
        model = make(InPlaceResidual, dtype)
        for split, sizes in SPLITS.items():
            H = HessianOperator(model, losses, batches(sizes, dtype), engine="jvp")
            found[f"{name}, {split}: product"] = H.matmat(block(dtype))
        pairs = extreme_eigenpairs(H, 1, tol=1e-4, generator=torch.Generator().manual_seed(1))
        found[f"{name}: eigenvalues"], found[f"{name}: residuals"] = pairs.values, pairs.residuals
        found[f"{name}: verified"] = pairs.verified
        found[f"{name}: gradient"], found[f"{name}: loss"] = H.gradient(), torch.tensor(H.loss(), dtype=torch.float64)
        found[f"{name}: twin"] = H.double().matmat(block())
    found["float64: a sample for the first process alone"] = HessianOperator(
        model, losses, batches((1,)), engine="reverse").matmat(block())
    found["float64: a mean loss"] = HessianOperator(
        model, lambda z, t: losses(z, t).mean(), batches((4, 3)), engine="jvp").matmat(block())
    found["float64: batches that cannot be cut"] = HessianOperator(
        model, None, [{"x": x, "y": y, "scale": torch.tensor(2.0)} for x, y in batches((4, 3))], engine="jvp",
        forward=lambda net, batch: batch["scale"] * losses(net(batch["x"]), batch["y"])).matmat(block())
    G = GaussNewtonOperator(model, losses, batches((4, 3)), engine="jvp")
    found["float64: Hessian less Gauss-Newton"] = (H - G).matmat(block())
    return {name: np.asarray(value) for name, value in found.items()}


def unequal_memory(rank: int) -> np.ndarray:
    """Return eigenvalues where the first process has memory for few vectors and the second for many."""
    H, free = HessianOperator(make(InPlaceResidual), losses, batches((4, 3)), engine="jvp"), lanczos.free_memory
    lanczos.free_memory = lambda device: (1 + 99 * rank) * 2 * 30 * 2 * 8 * H.size
    try:
        space = krylov(H, num_matvecs=30, num_probes=1, generator=torch.Generator().manual_seed(0), num_ritz=2)
        return extreme_eigenpairs(space, 2, tol=1e-10, generator=torch.Generator().manual_seed(1)).values
    finally:
        lanczos.free_memory = free


def refusals(rank: int) -> dict[str, str]:
    """Return what is raised where one process alone meets a mistake."""
    model, data = make(InPlaceResidual), batches((4, 3))
    spoilt, other = [(x.clone(), y) for x, y in data], make(InPlaceResidual)
    spoilt[1][0][2] = float("nan")                  # the last sample: the second process's share
    with torch.no_grad():
        other.head.bias += rank
    H = HessianOperator(model, losses, data, engine="jvp")

    def moved():
        with torch.no_grad():
            model.head.bias += rank
        return H @ block()[0]
    actions = {"not finite": lambda: HessianOperator(model, losses, spoilt),
               "other weights": lambda: HessianOperator(other, losses, data),
               "other data": lambda: HessianOperator(model, losses, data[rank:]),
               "other vectors": lambda: H @ (block()[0] + rank),
               "moved": moved,
               "an error that is no mistake": lambda: H._processes.together(lambda: [][0] if rank else None)}
    return {name: _raised(action) for name, action in actions.items()}


def _raised(action) -> str:
    try:
        action()
    except (InputError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    with init_from_environment() as here:
        with main_first():
            with open(folder / "order.txt", "a", encoding="utf-8") as file:
                file.write(f"{here.rank}{is_main():d} ")
        alone = HessianOperator(make(InPlaceResidual), losses, batches((4, 3)), engine="jvp", share=False)
        np.savez(folder / f"rank{here.rank}.npz", count=here.count, **measure(), alone=(alone @ block()[0]).numpy(),
                 unequal_memory=unequal_memory(here.rank),
                 engine=HessianOperator(make(InPlaceResidual), losses, batches((7,))).engine,
                 **{f"refusal: {name}": text for name, text in refusals(here.rank).items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
