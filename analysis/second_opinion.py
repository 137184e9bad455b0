"""What PyHessian says of the same model and images: its top eigenvalue by power iteration and its Hutchinson trace.

Released PyHessian 0.1 cannot compute a density on a current torch, so its `density()` is not called. Its estimates carry no
error: power iteration stops when two values agree to 1e-3, the trace when two running means do.
"""

import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from landscape.seeding import global_seed


def pyhessian_numbers(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor], *,
                      seed: int = 0) -> dict[str, float]:
    """Return PyHessian's largest-magnitude eigenvalue and trace of the mean loss over one batch (inputs, targets).

    Beside the trace stand its number of probes and its standard error by them, which PyHessian does not give.
    """
    from pyhessian import hessian
    twin = copy.deepcopy(model).eval().float()
    with global_seed(seed, batch[0].device), warnings.catch_warnings():
        # It is how PyHessian works, and undone below.
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        engine = hessian(twin, lambda logits, targets: loss(logits, targets).mean(), data=(batch[0].float(), batch[1]),
                         cuda=batch[0].is_cuda)
        (eigenvalue,), _ = engine.eigenvalues(top_n=1)
        samples = engine.trace()
    twin.zero_grad(set_to_none=True)    # its gradients hold the graph that made them
    samples = torch.tensor([float(sample) for sample in samples], dtype=torch.float64)
    error = float(samples.std()) / len(samples) ** 0.5 if len(samples) > 1 else math.nan
    return {"pyhessian_top_eigenvalue": float(eigenvalue), "pyhessian_trace": float(samples.mean()),
            "pyhessian_trace_probes": float(len(samples)), "pyhessian_trace_error": error}
