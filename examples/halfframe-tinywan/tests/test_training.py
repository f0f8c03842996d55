"""What training is built on: its expert and VAE are diffusers' own, and its targets lead the host's scheduler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from halfframe_tinywan.models import LORA_SHIFT, LORA_STEPS, build_expert, build_vae

pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    yield
    for name in ("fast", "common", "trajectories", "lora", "chain", "pack", "unpack", "mix"):
        sys.modules.pop(name, None)


@torch.no_grad()
def test_encoding_and_decoding_whole_clips_is_what_diffusers_does_in_pieces() -> None:
    from fast import decode, encode

    torch.manual_seed(0)
    vae, video = build_vae().eval(), torch.rand(1, 3, 9, 32, 32) * 2 - 1
    latents = vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(encode(vae, video), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decode(vae, latents).clamp(-1, 1), vae.decode(latents).sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("channels", [16, 36])
def test_velocity_is_the_experts(channels: int) -> None:
    from fast import rotary, velocity

    torch.manual_seed(0)
    model: Any = build_expert(channels).eval()
    x, timestep, text = torch.randn(2, channels, 3, 4, 4), torch.tensor([500.0, 900.0]), torch.randn(2, 16, 64)
    expected = model(x, timestep, text).sample
    seen = velocity(model, dict(model.named_parameters()), x, timestep, text, rotary(model, x))
    assert (seen - expected).norm() < 0.01 * expected.norm()  # its matrix products are in bfloat16


def test_targets_lead_the_hosts_scheduler_through_the_teachers_latents() -> None:
    from common import host_scheduler
    from trajectories import student_targets

    torch.manual_seed(0)
    states = [torch.randn(2, 3, 2, 2, 2) for _ in range(LORA_STEPS + 1)]
    scheduler, x = host_scheduler(LORA_STEPS, LORA_SHIFT, "cpu"), states[0]
    for number, (timestep, target) in enumerate(zip(scheduler.timesteps, student_targets(states), strict=True)):
        x = scheduler.step(target, timestep, x, return_dict=False)[0]
        torch.testing.assert_close(x, states[number + 1], atol=1e-4, rtol=1e-4)


def test_the_teachers_schedule_holds_the_students_levels() -> None:
    from trajectories import joint_schedule

    scheduler, marks = joint_schedule("cpu")
    levels = scheduler.sigmas[marks]
    torch.testing.assert_close(levels, torch.tensor([1.0, 0.9375, 0.8333, 0.625]), atol=2e-3, rtol=0)
    assert (scheduler.sigmas.diff() < 0).all()


def test_a_merged_lora_is_the_sum() -> None:
    from lora import merged, new_lora

    torch.manual_seed(0)
    base = {"blocks.0.attn1.to_q.weight": torch.randn(4, 6), "proj_out.weight": torch.randn(4, 4)}
    lora = new_lora(base, "cpu")
    assert set(lora) == {"blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_B.weight"}
    torch.testing.assert_close(merged(base, lora)["blocks.0.attn1.to_q.weight"], base["blocks.0.attn1.to_q.weight"])
    first, second = lora.values()
    torch.nn.init.normal_(second)
    expected = base["blocks.0.attn1.to_q.weight"] + second @ first
    torch.testing.assert_close(merged(base, lora)["blocks.0.attn1.to_q.weight"], expected)


def test_the_chain_is_the_hosts_run_and_its_gradient_reaches_the_first_expert() -> None:
    from chain import ladder, run
    from common import host_scheduler
    from fast import rotary, velocity
    from lora import merged, new_lora

    torch.manual_seed(0)
    experts: list[Any] = [build_expert().eval().requires_grad_(False) for _ in range(2)]
    with_weights = [(expert, dict(expert.named_parameters())) for expert in experts]
    pair = [new_lora(weights, "cpu") for _, weights in with_weights]
    for lora in pair:
        for name, weight in lora.items():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
    x, text = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 16, 64)
    states = run(with_weights, pair, x, text, ladder("cpu"))
    scheduler, tables = host_scheduler(LORA_STEPS, LORA_SHIFT, "cpu"), rotary(experts[0], x)
    with torch.no_grad():
        for number, timestep in enumerate(scheduler.timesteps):
            model, base = with_weights[number >= 2]
            v = velocity(model, merged(base, pair[number >= 2]), x, timestep.expand(2).float(), text, tables)
            x = scheduler.step(v, timestep, x, return_dict=False)[0]
            torch.testing.assert_close(states[number], x, atol=2e-3, rtol=0)
    states[-1].square().mean().backward()
    for lora in pair:
        assert all(weight.grad is not None and weight.grad.norm() > 0 for weight in lora.values())


def test_unpacked_weights_are_packed_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import resources

    import pack
    from safetensors.torch import load_file
    from unpack import unpack

    shipped = Path(str(resources.files("halfframe_tinywan") / "weights"))
    unpack(shipped, tmp_path)
    monkeypatch.setattr(sys, "argv", ["pack.py", "--folder", str(tmp_path), "--weights", str(tmp_path / "weights")])
    pack.main()
    for path in shipped.glob("*.safetensors"):
        expected, seen = load_file(path), load_file(tmp_path / "weights" / path.name)
        assert expected.keys() == seen.keys()
        assert all(torch.equal(value, seen[name]) for name, value in expected.items()), path.name


def test_a_mixed_lora_is_the_weighted_sum_of_products_at_the_first_ones_rank() -> None:
    from mix import mixed

    torch.manual_seed(0)
    stem = "transformer.blocks.0.attn1.to_q"

    def lora(rank: int) -> dict[str, torch.Tensor]:
        return {f"{stem}.lora_A.weight": torch.randn(rank, 6), f"{stem}.lora_B.weight": torch.randn(8, rank)}

    def product(one: dict[str, torch.Tensor]) -> torch.Tensor:
        return one[f"{stem}.lora_B.weight"] @ one[f"{stem}.lora_A.weight"]

    wide, narrow = lora(4), lora(2)
    expected = 0.25 * product(wide) + 0.75 * product(narrow)
    exact, lost = mixed([lora(6), wide, narrow], [0.0, 0.25, 0.75])
    torch.testing.assert_close(product(exact), expected)
    assert lost < 1e-10
    near, lost = mixed([narrow, wide], [0.75, 0.25])
    assert [tuple(factor.shape) for factor in near.values()] == [(2, 6), (8, 2)]
    assert lost == pytest.approx(float((product(near) - expected).square().sum() / expected.square().sum()), rel=1e-3)
    assert lost > 0.01
    with pytest.raises(SystemExit, match="different names"):
        mixed([narrow, {}], [0.5, 0.5])
