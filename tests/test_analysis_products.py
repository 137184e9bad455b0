"""Compiled engines, which take a minute to prepare: not in the default run."""

import pytest
import torch
from networks import Attention, InPlaceResidual, dense_hessian, images, losses, make

from analysis.operators.hessian import HessianOperator
from analysis.operators.verification import relative_gap
from landscape.errors import InputError

X, Y = images()
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning",
                                                           "ignore::FutureWarning", "ignore::ResourceWarning")]


@pytest.mark.parametrize("kind", [InPlaceResidual, Attention])
def test_compiled_products_are_those_of_the_dense_hessian_on_every_call(kind):
    model = make(kind)
    operator = HessianOperator(model, losses, [(X[:4], Y[:4]), (X[4:], Y[4:])], engine="linearized-compiled")
    identity = torch.eye(operator.size, dtype=torch.float64)
    for _ in range(3):
        assert relative_gap(operator.matmat(identity), dense_hessian(model, X, Y)) < 1e-12


def test_what_is_kept_and_what_is_computed_anew_are_the_same_bits_compiled_too():
    model, v, traces = make(InPlaceResidual), torch.randn(123, dtype=torch.float64), {}
    kept, anew = (HessianOperator(model, losses, [(X, Y)], memory=memory, traces=traces, engine="linearized-compiled")
                  for memory in (1e9, 0))
    assert torch.equal(kept @ v, anew @ v)


def test_many_products_pay_for_compiling_and_few_do_not(monkeypatch):
    from analysis.operators import plan
    monkeypatch.setattr(plan, "COMPILING", 1e-9)
    many = HessianOperator(make(InPlaceResidual), losses, [(X, Y)], expected_matvecs=1000)
    assert many.engine == "linearized-compiled" or "times slower" in many.reasons["linearized-compiled"]


def test_without_a_compiler_the_reason_is_named_and_nothing_runs_eagerly_instead():
    from torch._inductor import config
    missing = config.patch({"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False})     # put back whole by itself alone
    with missing, pytest.raises(InputError, match="linearized-compiled: TorchInductor"):
        HessianOperator(make(InPlaceResidual), lambda z, t: 1.7 * losses(z, t), [(X, Y)], engine="linearized-compiled")
