"""The features of images: what a network's classifier, the linear layer or cosine head that its forward calls last, is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from landscape.errors import InputError
from landscape.models.zoo import Classifier, CosineHead

LAYERS = (nn.Linear, CosineHead)


def features_and_logits(model: nn.Module, images: Tensor, classifier: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Return the features (N, F) of N images, and what the network makes of them, (N, C).

    Raises InputError where no linear layer is called, where the last is not given one vector an image, or is another than the
    `classifier` that is expected.
    """
    if isinstance(model, Classifier):
        features = model.features(images)
        return features, model.fc(features)
    with _last_call(model) as call:
        logits = model(images)
    if not call:
        raise InputError(f"{type(model).__name__} calls no nn.Linear, whose input would be its features: give it one as its last "
                         "layer")
    if classifier is not None and call["layer"] is not classifier:
        raise InputError(f"{type(model).__name__} declares another linear layer last than the one it calls last, whose input "
                         "its features are: declare its classifier last")
    features = call["inputs"]
    if features.ndim != 2 or len(features) != len(images):
        raise InputError(f"the last linear layer of {type(model).__name__} is given features of shape {tuple(features.shape)}: "
                         f"expected ({len(images)}, F), one vector an image")
    return features, logits


@contextmanager
def _last_call(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Keep the linear `layer` called last, and what it is given, `inputs`."""
    call: dict[str, Any] = {}
    hooks = [layer.register_forward_pre_hook(lambda module, inputs: call.update(layer=module, inputs=inputs[0]))
             for layer in model.modules() if isinstance(layer, LAYERS)]
    try:
        yield call
    finally:
        for hook in hooks:
            hook.remove()


def classifier_layer(model: nn.Module, apart: tuple[str, ...] = ()) -> tuple[str, nn.Module]:
    """Return name and module of the linear layer declared last, the children `apart` left out; InputError without one."""
    layers = [(name, module) for name, module in model.named_modules()
              if isinstance(module, LAYERS) and name.partition(".")[0] not in apart]
    if not layers:
        raise InputError(f"{type(model).__name__} has no nn.Linear, whose input would be its features: give it one as its last "
                         "layer, or choose a loss and an optimizer that take no features")
    return layers[-1]
