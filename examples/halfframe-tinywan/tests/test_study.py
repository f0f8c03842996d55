"""The study's bookkeeping: its items, what they cost, and what stands beside them at equal cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
pytest.importorskip("diffusers")

import caches
import tables
from frontier import costs_of
from run import all_items
from settings import SETTINGS, cost_of, cost_of_moves

import halfframe


def test_items_can_be_done_in_their_order() -> None:
    done: set[str] = set()
    for item in all_items():
        assert item.id not in done
        assert done.issuperset(item.needs), item.id
        done.add(item.id)


def test_costs_are_those_of_plan() -> None:
    setting = SETTINGS["t2v-20"]
    assert cost_of(setting) == pytest.approx(20)
    assert cost_of(setting, guidance=halfframe.Guidance(skip_last=5)) == pytest.approx(17.5)
    assert cost_of_moves(setting, ["full"] * 3 + ["full+cond"]) == pytest.approx(3.5)
    costs = costs_of(setting)
    assert costs["reuse"] == pytest.approx(0)
    assert 0.3 < costs["merge:2"] < 0.5 < costs["full"] == pytest.approx(1)
    assert costs["merge:3+cond"] == pytest.approx(costs["merge:3"] / 2)


@pytest.mark.parametrize("setting", [SETTINGS["t2v-8"], SETTINGS["lora-4"]], ids=lambda setting: setting.name)
def test_a_plain_run_is_counted_as_full_steps_and_a_cached_block_as_none(setting: Any) -> None:
    from halfframe_tinywan import language

    from halfframe.testing import WanSizes, tiny_diffusers_t2v

    sizes = WanSizes(dim=32, ffn_dim=32, num_heads=2, num_layers=2, text_dim=language.TEXT_DIM, text_len=16)
    pipe = tiny_diffusers_t2v(sizes=sizes, text_encoder=language.TextEncoder(), tokenizer=language.Tokenizer())

    def run() -> None:
        pipe(
            "a big red ball over moss",
            height=32,
            width=32,
            num_frames=5,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance[1],
            guidance_scale_2=setting.guidance[0],
            max_sequence_length=16,
            output_type="latent",
        )

    with caches.Counter(pipe) as counter:
        run()
    assert counter.cost(setting.passes) == pytest.approx((setting.steps, setting.steps))
    block = pipe.transformer_2.blocks[1]
    block.forward = lambda hidden_states, *_, **__: hidden_states
    low = caches.expert_steps(pipe, setting)[1]
    with caches.Counter(pipe) as counter:
        run()
    # Of the low-noise expert's steps only one block of two was computed: a fortieth, or a half of what there is.
    assert counter.cost(setting.passes) == pytest.approx((setting.steps - low * 39 / 40, setting.steps - low / 2))


def test_leads_are_at_equal_cost(tmp_path: Path) -> None:
    def row(part: str, label: str, cost: float, error: float) -> str:
        named = {"id": f"{part}{label}", "part": part, "setting": "t2v-8", "label": label, "cost": cost, "peak": 1.0}
        return json.dumps({**named, "decoded": [error, error], "latents": [error, error]})

    lines = [
        row("fewer steps", "4 steps", 4, 1e-2),  # 20 dB
        row("fewer steps", "5 steps", 5, 1e-3),  # 30 dB
        row("truncated", "6 steps, 3 truncated", 4.5, 10**-2.6),
        row("cache", "MagCache", 4.5, 10**-2.7),
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "facts.json").write_text("{}", encoding="utf-8")
    results = tables.Results(tmp_path)
    found = results.of("t2v-8", "cache")[0]
    lead, best = results.lead(found), results.lead(found, "truncated")
    assert lead is not None
    assert best is not None
    assert lead.estimate == pytest.approx(2.0)
    assert best.estimate == pytest.approx(1.0)


def test_a_recipe_of_several_budgets_is_shown_once(tmp_path: Path) -> None:
    def row(budget: str, moves: list[str]) -> str:
        named = {"id": f"recipe {budget}", "part": "recipe", "setting": "lora-4", "label": budget, "moves": moves}
        return json.dumps({**named, "cost": len(moves) - moves.count("reuse"), "decoded": [1e-2], "latents": [1e-2]})

    moves = ["full", "full", "full", "reuse"]
    lines = [row("0.9", moves), row("0.8", moves), row("0.5", ["full", "reuse"])]
    (tmp_path / "results.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "facts.json").write_text("{}", encoding="utf-8")
    assert [found["label"] for found in tables.Results(tmp_path).of("lora-4", "recipe")] == ["0.9", "0.5"]


def test_the_recipes_are_those_of_the_tables() -> None:
    folder = Path(tables.__file__).parent
    rows = [row for row in tables.Results(folder / "data").rows if row["part"] == "recipe"]
    files = {path.stem: halfframe.Recipe.load(path) for path in (folder / "recipes").glob("*.json")}
    assert {name: recipe.moves for name, recipe in files.items()} == {
        f"{row['setting']}-{row['cost']:.2f}": tuple(row["moves"]) for row in rows
    }
    for name, recipe in files.items():
        setting = SETTINGS[name.rpartition("-")[0]]
        assert cost_of_moves(setting, recipe.moves) == pytest.approx(float(name.rpartition("-")[2]), abs=0.006)
