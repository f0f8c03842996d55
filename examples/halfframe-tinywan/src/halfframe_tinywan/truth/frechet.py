"""A Frechet distance between two sets of clips, on features that are stated here and learnt from nothing.

It is lower the nearer the mean and the covariance of the features are. It falls with the number of clips, as all
Frechet distances do: compare only sets of equal size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from halfframe.errors import OptionError
from halfframe_tinywan.truth.colours import halved
from halfframe_tinywan.truth.takes import Truth

__all__ = ["FEATURES", "features", "frechet_distance"]

FEATURES: dict[str, float] = {
    # Measures of `Truth`.
    "speed": 0.3,
    "log_path_error": 1.0,
    "log_jerk": 1.0,
    "duplicates": 0.1,
    "same_scene": 0.1,
    "tile_error": 0.05,
    "sharpness": 0.2,
    "ground_error": 0.05,
    "form_error": 0.1,
    # Colour moments over all pixels and frames, RGB 0..1.
    "mean_red": 0.2,
    "mean_green": 0.2,
    "mean_blue": 0.2,
    "deviation_red": 0.1,
    "deviation_green": 0.1,
    "deviation_blue": 0.1,
    # Logarithm of the mean absolute difference of neighbours, at half the size, over the clip's deviation.
    "log_gradient": 0.2,
    "log_change": 0.3,
    # Logarithm of three bands' shares in the energy of the pixels' change: up to 1/8, 1/4, 1/2 cycles a frame.
    "log_slow": 0.3,
    "log_middle": 0.5,
    "log_fast": 1.0,
}
"""Each feature of a clip and the difference in it that counts as one, about the deviation over real clips or more."""


@torch.no_grad()
def features(clips: Tensor, truths: Sequence[Truth], batch: int = 16) -> Tensor:
    """`FEATURES` of ``clips`` ``(B, 3, F, H, W)``, values 0..1, in their units: ``(B, features)`` on the CPU, float64.

    Raises:
        OptionError: not one truth (see `measure_all`) per clip.
    """
    if len(clips) != len(truths):
        raise OptionError(f"{len(clips)} clips and {len(truths)} truths; needed: one truth per clip.")
    simple = torch.cat([_statistics(part.float()).double().cpu() for part in torch.split(clips, batch)])
    measured = torch.tensor([_measures(truth) for truth in truths], dtype=torch.float64)
    return torch.cat([measured, simple], dim=1) / torch.tensor(list(FEATURES.values()), dtype=torch.float64)


def _measures(truth: Truth) -> list[float]:
    forms = [1.0 if math.isnan(seen.form_error) else min(1.0, seen.form_error) for seen in truth.sightings]
    return [
        truth.speed,
        math.log(truth.path_error + 0.05),
        math.log(truth.jerk + 0.05),
        truth.duplicates,
        truth.same_scene,
        truth.tile_error,
        truth.sharpness,
        truth.ground_error,
        sum(forms) / len(forms),
    ]


def _statistics(clips: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(clips.flatten(2), dim=2)
    small = halved(clips)
    scale = deviation.mean(dim=1).clamp(min=1e-3)
    change = small.diff(dim=2)
    gradient = (small.diff(dim=3).abs().flatten(1).mean(dim=1) + small.diff(dim=4).abs().flatten(1).mean(dim=1)) / 2
    light = change[..., ::2, ::2].mean(dim=1)  # (B, F - 1, h, w)
    energy = torch.fft.rfft(light, dim=1).abs().square().mean(dim=(2, 3))  # (B, frequencies)
    cycles = torch.fft.rfftfreq(light.shape[1], device=clips.device)
    bands = [energy[:, (cycles > low) & (cycles <= high)].sum(dim=1) for low, high in _BANDS]
    shares = torch.stack(bands, dim=1) / (energy.sum(dim=1, keepdim=True) + 1e-6)
    spread = torch.stack([gradient, change.abs().flatten(1).mean(dim=1)], dim=1) / scale[:, None]
    return torch.cat([mean, deviation, (spread + 1e-3).log(), (shares + 1e-3).log()], dim=1)


_BANDS = ((-1.0, 0.125), (0.125, 0.25), (0.25, 0.5))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared distance between normal distributions fitted to `features` of two sets of clips (Dowson, Landau 1982).

    Raises:
        OptionError: fewer than two clips in a set, or other features in one than in the other.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise OptionError(
            f"features of shapes {tuple(first.shape)} and {tuple(second.shape)}; needed: one width, 2 clips or more."
        )
    a, b = first.double(), second.double()
    covariance, other = torch.cov(a.mT), torch.cov(b.mT)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, float(means + covariance.trace() + other.trace() - 2 * cross))
