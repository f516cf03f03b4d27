"""Distances between two sets of images, from the features of each image. They need only numpy, not torch.

Fréchet: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the Gaussians fitted to both sets (Heusel et al. 2017). It is
FID with Inception's features and FD-<name> with others. Kernel: the unbiased squared MMD with the kernel
(x.y / d + 1)^3 (Binkowski et al. 2018), named KID or KD-<name>. torch-fidelity gives the same numbers for the same
images.

With few images the Fréchet distance is biased upwards. The kernel distance is not, and may be negative.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
SUBSETS, SUBSET_SIZE = 100, 1000  # for sets too large for one kernel matrix, as in torch-fidelity


def frechet(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the Fréchet distance between features [n, d] and [m, d]; nan if either has fewer than two images.

    tr (S1 S2)^(1/2) is the nuclear norm of A B^T for any A, B with S1 = A^T A and S2 = B^T B: the centred features
    themselves or, for many images, the triangular factor of their QR decomposition.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if min(len(a), len(b)) < 2:
        return float("nan")
    shift = a.mean(0) - b.mean(0)
    a, b = _factor(a), _factor(b)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + (a * a).sum() + (b * b).sum() - 2 * shared)


def _factor(x: Array) -> Array:
    """Return A [min(n, d), d] such that A^T A is the covariance of x [n, d]."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred


def kernel(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the kernel distance between features [n, d] and [m, d]; nan if either has fewer than two images.

    Sets of more than 1000 are compared by the mean over 100 pairs of subsets of 1000, drawn with a fixed seed.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if min(len(a), len(b)) < 2:
        return float("nan")
    if max(len(a), len(b)) <= SUBSET_SIZE:
        return _mmd2(a, b)
    rng = np.random.default_rng(2020)
    size = min(SUBSET_SIZE, len(a), len(b))
    draws = ((rng.choice(len(a), size, replace=False), rng.choice(len(b), size, replace=False)) for _ in range(SUBSETS))
    return float(np.mean([_mmd2(a[i], b[j]) for i, j in draws]))


def _mmd2(a: Array, b: Array) -> float:
    n, m = len(a), len(b)
    aa, bb, ab = _polynomial(a, a), _polynomial(b, b), _polynomial(a, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def _polynomial(a: Array, b: Array) -> Array:
    return (a @ b.T / a.shape[1] + 1) ** 3


DISTANCES = {"frechet": frechet, "kernel": kernel}
