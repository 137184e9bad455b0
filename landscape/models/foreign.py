"""Models from elsewhere: "timm:NAME", "torchvision:NAME", or a researcher's own "module:callable", untrained."""

from torch import nn

from landscape.callables import call_named, import_named
from landscape.errors import InputError


def build_foreign(arch: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build the model that `arch` names, untrained.

    A callable gets num_classes, and in_channels and image_size too where its signature names them. An arch that does
    not resolve, or gives no nn.Module, is an InputError; errors raised inside the callable pass through.
    """
    source, _, name = arch.partition(":")
    if source in _LIBRARIES:
        return _LIBRARIES[source](name, num_classes, in_channels)
    model = call_named(arch, {"num_classes": num_classes}, {"in_channels": in_channels, "image_size": image_size})
    if not isinstance(model, nn.Module):
        raise InputError(f"arch={arch!r} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def _torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if in_channels != 3:
        raise InputError(f"in_channels={in_channels} is out of range for arch='torchvision:{name}': its models take 3; "
                         "use timm:NAME or module:callable")
    models = import_named("torchvision.models", f"torchvision:{name}",
                          "pip install torchvision, or this package with its extra vision")
    if name not in models.list_models():
        raise _unknown("torchvision", name)
    return models.get_model(name, weights=None, num_classes=num_classes)


def _timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    timm = import_named("timm", f"timm:{name}", "pip install timm, or this package with its extra vision")
    if not timm.is_model(name):
        raise _unknown("timm", name)
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)


_LIBRARIES = {"timm": _timm, "torchvision": _torchvision}


def _unknown(library: str, name: str) -> InputError:
    return InputError(f"arch='{library}:{name}' is unknown: expected a name that {library}'s list_models() gives")
