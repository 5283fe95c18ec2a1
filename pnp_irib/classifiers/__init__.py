"""Small ImageNet classifiers: they name what a picture shows and measure how alike two pictures look."""

from pnp_irib.classifiers.distance import FeatureNet, feature_distance
from pnp_irib.classifiers.efficientnet_lite import VARIANTS, EfficientNetLite, LiteVariant, class_names, weight_file

__all__ = ["VARIANTS", "EfficientNetLite", "FeatureNet", "LiteVariant", "class_names", "feature_distance", "weight_file"]
