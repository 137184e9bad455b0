"""What cannot be evaluated is one error that names the batch, torch's own words and the way out."""

import pytest
import torch
from networks import losses
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from analysis.operators import GaussNewtonOperator, HessianOperator
from landscape.errors import InputError

X, Y = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class Answering(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x)}


def refusal(*batches, model=None, loss=losses, kind=HessianOperator, **options):
    with pytest.raises(InputError) as caught:
        kind(model or nn.Linear(5, 3), loss, list(batches), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.__cause__


def test_labels_out_of_range_are_told_with_their_range():
    text, cause = refusal((X, Y), (X[:4], Y[:4] + 1))
    assert text.startswith("batch 1 (float32 (4, 5), int64 (4,); the first is batch 0) cannot be evaluated, RuntimeError: index")
    assert text.endswith("its labels run from 1 to 3, the model has 3 outputs: expected labels 0 ... 2")
    assert isinstance(cause, RuntimeError)


def test_labels_that_are_floats_are_to_be_made_integers():
    text, _ = refusal((X, Y.float()))
    assert "batch 0 (float32 (8, 5), float32 (8,)" in text and text.endswith("as class labels .long()")


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_inputs_of_another_width_are_told_with_their_shape(kind):
    text, cause = refusal((X, Y), (X[:, :4], Y), kind=kind)
    assert "batch 1 (float32 (8, 4)" in text and "shapes cannot be multiplied" in text and "does not take these inputs" in text
    assert isinstance(cause, RuntimeError)


def test_a_model_that_returns_a_dictionary_is_told_of_forward():
    text, _ = refusal((X, Y), model=Answering(5, 3))
    assert "the model returns a dict: pass loss=None, forward=lambda model, batch: per_sample_losses" in text
    forward = HessianOperator(Answering(5, 3), None, [(X, Y)], forward=lambda m, b: losses(m(b[0])["logits"], b[1]))
    assert forward.size == 18


def test_a_forward_that_fails_is_told_with_the_names_of_the_batch():
    text, cause = refusal({"x": X, "y": Y}, loss=None, forward=lambda m, b: losses(m(b["inputs"]), b["y"]))
    assert "batch 0 (x float32 (8, 5), y int64 (8,)" in text and "KeyError: 'inputs'" in text and isinstance(cause, KeyError)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full"), InputError("mine"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")])
def test_a_lack_of_memory_and_our_own_errors_stay_what_they_are(error):
    def failing(z, t):
        raise error
    with pytest.raises(type(error)) as caught:
        HessianOperator(nn.Linear(5, 3), failing, [(X, Y)])
    assert caught.value is error


def test_a_data_set_without_batches_is_refused():
    data = TensorDataset(X, Y)
    for given in (data, torch.utils.data.Subset(data, [0, 1])):
        with pytest.raises(InputError, match=r"wrap it in a DataLoader\(dataset, batch_size=...\)"):
            HessianOperator(nn.Linear(5, 3), losses, given)
    assert HessianOperator(nn.Linear(5, 3), losses, DataLoader(data, batch_size=3)).num_samples == 8


def test_a_batch_that_begins_with_a_number_is_refused():
    assert refusal((torch.tensor(1.0), Y))[0] == "batch 0 begins with a number: expected tensors of one row a sample, (B, ...)"


def test_a_loss_beside_forward_is_refused():
    text, _ = refusal((X, Y), forward=lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"))
    assert text == "loss is not called where forward is given: pass loss=None"
