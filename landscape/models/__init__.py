"""Networks by name, and networks and weights from elsewhere."""

from landscape.models.zoo import ARCHITECTURES, Classifier, CosineHead, build_model

__all__ = ["ARCHITECTURES", "Classifier", "CosineHead", "build_model"]
