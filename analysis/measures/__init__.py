"""Measures of the mechanism: what sharpness-aware ascents have to do with curvature, one file a measure."""
