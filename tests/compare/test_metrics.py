"""Every metric against a case that can be done by hand."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halfframe.compare import as_video, metrics, perceptual, quality, read_video, video_duplication_ratio, write_video
from halfframe.compare.metrics import latent_duplication_ratio, psnr
from halfframe.errors import HalfframeError
from halfframe.sampling import frames


def flat(levels: list[float], height: int = 16, width: int = 24) -> np.ndarray:
    """A video of uniform grey frames ``(F, H, W, 3)``."""
    return np.broadcast_to(np.array(levels)[:, None, None, None], (len(levels), height, width, 3)).copy()


def noise(num_frames: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num_frames, height, width, 3)).astype(np.float32) * 0.8


def test_a_constant_offset_of_a_tenth_is_20_db() -> None:
    result = quality(flat([0.5, 0.6]), flat([0.4, 0.5]))
    assert result.mse == pytest.approx(0.01)
    assert result.psnr_frames == pytest.approx((20.0, 20.0))
    assert result.psnr == pytest.approx(20.0)
    assert result.identical_frames == 0


def test_the_source_s_mse_and_psnr_cannot_both_be_true() -> None:
    """It states MSE 0.012 and 38.2 dB. At peak 1 the first is 19.2 dB, and the second an MSE of 0.00015."""
    assert psnr(0.012) == pytest.approx(19.2, abs=0.05)
    assert psnr(0.00015) == pytest.approx(38.2, abs=0.05)
    assert psnr(0.012 / 255**2) > 60  # nor does it help to read the MSE on a scale of 0..255


def test_psnr_is_the_mean_of_the_frames_not_of_the_clip() -> None:
    result = quality(flat([0.1, 0.01]), flat([0.0, 0.0]))
    assert result.psnr_frames == pytest.approx((20.0, 40.0))
    assert result.psnr == pytest.approx(30.0)
    assert result.mse == pytest.approx((0.01 + 0.0001) / 2)


def test_identical_frames_are_counted_and_kept_out_of_the_mean() -> None:
    result = quality(flat([0.5, 0.6]), flat([0.5, 0.5]))
    assert result.psnr_frames == (math.inf, pytest.approx(20.0))
    assert result.psnr == pytest.approx(20.0)
    assert result.identical_frames == 1


def test_an_identical_clip_is_infinitely_good() -> None:
    result = quality(noise(), noise())
    assert (result.mse, result.psnr, result.identical_frames) == (0, math.inf, 3)
    assert result.ssim == pytest.approx(1.0)
    assert result.motion_ratio == 1


def test_ssim_of_flat_frames_is_its_luminance_term() -> None:
    """Without variance SSIM is ``(2 a b + C1) / (a^2 + b^2 + C1)``, C1 = 0.01^2 at data range 1."""
    a, b, c1 = 0.6, 0.3, 0.01**2
    assert metrics.ssim_per_frame(flat([a]), flat([b])) == pytest.approx([(2 * a * b + c1) / (a**2 + b**2 + c1)])


def test_ssim_of_a_single_window_is_the_formula() -> None:
    """11x11 pixels are one window: at its centre, Gaussian-weighted means, variances and covariance."""
    a, b = noise(1, 11, 11, seed=1).astype(np.float64), noise(1, 11, 11, seed=2).astype(np.float64)
    gauss = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(gauss, gauss)[..., None] / gauss.sum() ** 2

    def mean(x: np.ndarray) -> np.ndarray:
        return (weights * x).sum((0, 1))

    x, y = a[0], b[0]
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1)
    by_hand = (luminance * (2 * covariance + c2) / (variances + c2)).mean()
    assert metrics.ssim_per_frame(a, b) == pytest.approx([by_hand])


def test_ssim_is_absent_with_a_reason_where_frames_are_smaller_than_its_window() -> None:
    result = quality(flat([0.1], 8, 24), flat([0.2], 8, 24))
    assert result.ssim is None
    assert "24x8 are smaller" in result.absent["ssim"]
    with pytest.raises(HalfframeError, match="frames of 24x8 are smaller than SSIM's window; needed: 11x11"):
        metrics.ssim_per_frame(flat([0.1], 8, 24), flat([0.2], 8, 24))


def test_lpips_is_absent_with_a_reason_or_there() -> None:
    result = quality(flat([0.1]), flat([0.2]))
    assert (result.lpips is None) == ("lpips" in result.absent)


@pytest.fixture
def fresh_lpips() -> Any:
    perceptual.load_lpips.cache_clear()
    yield
    perceptual.load_lpips.cache_clear()


@pytest.mark.usefixtures("fresh_lpips")
def test_lpips_is_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "are not in the checkpoints folder" in str(perceptual.load_lpips())


@pytest.mark.usefixtures("fresh_lpips")
def test_lpips_is_given_frames_in_its_own_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape == b.shape == (1, 3, 16, 24)
            return (a - b).mean()

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-0.pth").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Mean))  # type: ignore[arg-type]
    result = quality(flat([1.0, 0.5]), flat([0.0, 0.5]))
    assert result.lpips_frames == pytest.approx((2.0, 0.0))
    assert result.lpips == pytest.approx(1.0)


def test_latent_duplication_ratio_by_hand() -> None:
    """Changes .1 within pairs and .4 between them."""
    steps = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0])
    latents = steps[:, None, None].expand(16, 5, 2, 3)
    assert latent_duplication_ratio(latents) == pytest.approx(0.25)
    assert latent_duplication_ratio(latents.to(torch.bfloat16)[None]) == pytest.approx(0.25, rel=0.05)
    assert latent_duplication_ratio(np.asarray(latents)) == pytest.approx(0.25)


def test_latent_duplication_ratio_of_even_motion_is_1_and_of_copies_0() -> None:
    latents = torch.arange(9.0)[:, None, None].expand(9, 4, 4)
    assert latent_duplication_ratio(latents) == pytest.approx(1)
    kept = frames.kept_indices(9)
    twice = frames.take(latents, kept).repeat_interleave(2, dim=-3)[:9]
    assert latent_duplication_ratio(twice) == 0


def test_duplication_ratio_of_too_little_is_none() -> None:
    assert latent_duplication_ratio(torch.zeros(16, 2, 4, 4)) is None
    assert latent_duplication_ratio(torch.zeros(16, 9, 4, 4)) is None
    assert video_duplication_ratio(flat([0.1] * 5)) is None
    assert video_duplication_ratio(flat([0.1] * 33)) is None


def test_video_duplication_ratio_of_even_motion_is_1() -> None:
    assert video_duplication_ratio(flat(list(np.linspace(0, 1, 33)))) == pytest.approx(1)


def test_video_duplication_ratio_by_hand() -> None:
    """Latent frames 0..4 end in video frames 0, 4, 8, 12, 16: .1 to 1, .3 to 2, .1 to 3, .3 to 4."""
    ends = np.interp(range(17), [0, 4, 8, 12, 16], [0.0, 0.1, 0.4, 0.5, 0.8])
    assert video_duplication_ratio(flat(list(ends))) == pytest.approx(1 / 3)


@pytest.mark.parametrize("second_group", ["stands still", "plays the motion again"])
def test_video_duplication_ratio_sees_either_kind_of_duplicate(second_group: str) -> None:
    """9 latent frames, those at 1, 3, 5, 7 copies of the ones before them."""
    levels = [0.0]
    for latent in range(1, 9):
        motion = [0.05, 0.10, 0.15, 0.20]
        source = latent - latent % 2  # the kept frame that this one shows
        if latent % 2 and second_group == "stands still":
            levels += [0.1 * source] * 4
        else:
            levels += [0.1 * source - 0.20 + m for m in motion]
    video = flat(list(np.clip(levels, 0, 1)))
    ratio = video_duplication_ratio(video)
    assert ratio is not None
    assert ratio == pytest.approx(0, abs=1e-6)


def test_video_duplication_ratio_takes_another_stride() -> None:
    assert video_duplication_ratio(flat([0.0, 0.5, 0.1, 0.5, 0.5]), temporal_stride=2) == pytest.approx(0.25)


def test_motion_by_hand() -> None:
    assert metrics.motion(flat([0.0, 0.1, 0.4])) == pytest.approx(0.2)
    assert metrics.motion(flat([0.3])) == 0
    assert metrics.motion_ratio(flat([0.0, 0.1, 0.2]), flat([0.0, 0.2, 0.4])) == pytest.approx(0.5)
    assert metrics.motion_ratio(flat([0.0, 0.1]), flat([0.2, 0.2])) is None


def test_videos_of_different_shape_are_refused() -> None:
    with pytest.raises(HalfframeError, match=r"shape \(3, 16, 24, 3\) and the baseline \(2, 16, 24, 3\)"):
        quality(noise(3), noise(2))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((3, 4, 8, 8)), r"an array of shape \(3, 4, 8, 8\); needed: a float array \(F, H, W, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "has dtype uint8; needed: floating point"),
        (np.full((1, 4, 4, 3), -1.0), "has values from -1 to -1; needed: finite values in 0..1"),
        (np.full((1, 4, 4, 3), np.nan), "has values from nan to nan"),
        ([1, 2], "is a list; needed"),
    ],
)
def test_what_is_no_video_is_refused(video: Any, message: str) -> None:
    with pytest.raises(HalfframeError, match=message):
        metrics.check_video(video)


def test_official_tensors_are_taken() -> None:
    tensor = torch.tensor([-1.0, 0.0, 3.0])[:, None, None, None].expand(3, 5, 4, 6)
    video = as_video(tensor.to(torch.bfloat16))
    assert video.shape == (5, 4, 6, 3)
    assert video[2, 1, 1].tolist() == [0, 0.5, 1]  # clipped, as upstream does


@pytest.mark.parametrize("kind", ["np", "pt", "pil"])
def test_diffusers_outputs_are_taken(kind: str) -> None:
    from PIL import Image

    clip = np.rint(noise(2) * 255) / 255
    forms: dict[str, Any] = {
        "np": clip[None],
        "pt": torch.from_numpy(clip)[None].permute(0, 1, 4, 2, 3),
        "pil": [[Image.fromarray(np.rint(frame * 255).astype(np.uint8)) for frame in clip]],
    }
    assert as_video(types.SimpleNamespace(frames=forms[kind])) == pytest.approx(clip, abs=1e-6)


def test_what_is_no_output_is_refused() -> None:
    with pytest.raises(HalfframeError, match="output_type 'np', 'pt' or 'pil', not 'latent'"):
        as_video(types.SimpleNamespace(frames=torch.zeros(1, 16, 5, 4, 6)))
    with pytest.raises(HalfframeError, match="a NoneType is not a video"):
        as_video(None)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_array_files_are_exact(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "new" / f"clip{suffix}", noise())
    assert np.array_equal(read_video(path), noise())


def test_mp4_files_are_close_and_of_even_size(tmp_path: Path) -> None:
    clip = flat([0.2, 0.4, 0.6, 0.8, 0.6], 31, 45).astype(np.float32)
    video = read_video(write_video(tmp_path / "clip.mp4", clip))
    assert video.shape == (5, 32, 46, 3)
    assert video[:, :31, :45] == pytest.approx(clip, abs=0.02)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HalfframeError, match="there is no video file"):
        read_video(tmp_path / "missing.mp4")
    for name in ("text.mp4", "text.npy", "text.pt"):
        (tmp_path / name).write_text("not a video")
        with pytest.raises(HalfframeError, match=rf"{name}' cannot be read as a video: .*give a .mp4, .npy or .pt"):
            read_video(tmp_path / name)
    np.save(tmp_path / "latents.npy", np.zeros((16, 5, 4, 6)))
    with pytest.raises(HalfframeError, match=r"latents.npy': video is an array of shape \(16, 5, 4, 6\)"):
        read_video(tmp_path / "latents.npy")
