import pytest
import torch
from networks import InPlaceResidual, images, losses, make

from analysis.operators import HessianOperator
from analysis.operators.kernels import reproducible_kernels

X, Y = images()


def switches():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic, cudnn.benchmark]


@pytest.fixture
def careless():
    """Ask torch for what is fast and not exact, as a user's training script may."""
    matmul, cudnn, before = torch.backends.cuda.matmul, torch.backends.cudnn, switches()
    parts = [(matmul, "fp32_precision"), (cudnn.conv, "fp32_precision"), (cudnn.rnn, "fp32_precision"),
             (cudnn, "deterministic"), (cudnn, "benchmark")]
    wanted = ["tf32", "tf32", "tf32", False, True]
    for (part, name), value in zip(parts, wanted):
        setattr(part, name, value)
    yield wanted
    for (part, name), value in zip(parts, before):
        setattr(part, name, value)


EXACT = ["ieee", "ieee", "ieee", True, False]


def test_tf32_and_kernels_that_vary_are_off_inside_and_as_they_were_after_an_error_too(careless):
    with pytest.raises(KeyError), reproducible_kernels():
        assert switches() == EXACT
        raise KeyError
    assert switches() == careless


def test_every_evaluation_of_an_operator_is_in_full_precision_and_leaves_the_switches(careless):
    seen = []

    def watched(logits, targets):
        seen.append(switches())
        return losses(logits, targets)
    operator = HessianOperator(make(InPlaceResidual), watched, [(X, Y)], engine="reverse")
    for evaluate in (lambda: operator.matmat(torch.ones(1, operator.size)), operator.gradient, operator.loss,
                     lambda: operator.double().matmat(torch.ones(1, operator.size)), operator.gradient_error):
        before = len(seen)
        evaluate()
        assert len(seen) > before or evaluate == operator.gradient_error       # nothing to compare with in float64
    assert seen == [EXACT] * len(seen) and switches() == careless
