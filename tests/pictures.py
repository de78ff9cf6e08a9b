"""Comparing pictures."""

import numpy as np

from demo.drawing import Frame


def ssim(a: Frame, b: Frame) -> float:
    """Mean structural similarity of two pictures over 8x8 blocks of their grey values."""
    grey = [np.asarray(p, np.float64).mean(axis=2) for p in (a, b)]
    height, width = (side // 8 * 8 for side in grey[0].shape)
    x, y = (
        g[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 64) for g in grey
    )
    covariance = ((x - x.mean(1, keepdims=True)) * (y - y.mean(1, keepdims=True))).mean(1)
    light = (2 * x.mean(1) * y.mean(1) + 6.5) / (x.mean(1) ** 2 + y.mean(1) ** 2 + 6.5)
    return float((light * (2 * covariance + 58.5) / (x.var(1) + y.var(1) + 58.5)).mean())
