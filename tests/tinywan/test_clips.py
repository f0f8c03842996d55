"""The procedural clips, their language, and what is measured of them, which must agree with what was drawn."""

from __future__ import annotations

import random

import pytest
import torch

from halfframe import OptionError
from halfframe.tinywan import Scene, Thing, measure, parse_prompt, random_scene
from halfframe.tinywan.clips import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, SHAPES, SPEEDS, render
from halfframe.tinywan.text import TEXT_DIM, TEXT_LEN, TextEncoder, Tokenizer, WanTextEncoder

ISSUE = "a big red ball moves left fast over stripes, a small green square stays"


def drawn(scene: Scene, seed: int = 0, size: int = 64, num_frames: int = 81) -> torch.Tensor:
    """A clip of `scene`, values 0..1."""
    rng = random.Random(seed)
    starts = [(rng.random(), rng.random()) for _ in scene.things]
    return (render(scene, starts, num_frames, size, seed) + 1) / 2


def test_prompts_and_scenes_are_two_sides_of_one_thing() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng)
        assert parse_prompt(str(scene)) == scene
    assert str(parse_prompt(ISSUE)) == ISSUE
    assert parse_prompt("A big red ball stays over sand.") == Scene("sand", (Thing("big", "red", "ball"),))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is not in TinyWan's language"),
        ("a woman walking in a park", "'a woman walking in a park' is not in TinyWan's language; needed: \"a small"),
        ("a big red ball stays", 'needed: .*the first followed by "over stripes'),
        ("a big red ball moves left over sand", "'a big red ball moves left' in the prompt"),
        ("a big pink ball stays over sand", "'a big pink ball stays' in the prompt .* colours: red, green"),
        ("a big red ball stays over sand, a big red square stays", "has two red things"),
        (f"{ISSUE}, a small blue ball stays", "is not in TinyWan's language"),
    ],
)
def test_what_is_outside_the_language_is_refused_with_the_language(prompt: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_prompt(prompt)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_motion_is_measured_as_it_was_drawn(direction: str, speed: str, size: int) -> None:
    thing = Thing("big", "blue", "ball", direction, speed)
    (seen,) = measure(drawn(Scene("stripes", (thing,)), size=size), Scene("stripes", (thing,)))
    assert seen.found
    assert seen.direction_right
    assert seen.velocity == pytest.approx(thing.velocity, abs=0.01)
    assert seen.speed_error < 0.01


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", RADII)
@pytest.mark.parametrize("colour", COLOURS)
def test_colour_shape_and_size_are_measured_as_they_were_drawn(
    colour: str, size: str, shape: str, background: str
) -> None:
    scene = Scene(background, (Thing(size, colour, shape, "up", "slowly"),))
    (seen,) = measure(drawn(scene, num_frames=21), scene)
    assert seen.right
    others = [name for name in COLOURS if name != colour]
    for other in others:
        wrong = Scene(background, (Thing(size, other, shape, "up", "slowly"),))
        (missed,) = measure(drawn(scene, num_frames=21), wrong)
        assert not missed.found
        assert not missed.right


def test_wrong_motion_is_seen_as_wrong() -> None:
    clip = drawn(Scene("waves", (Thing("small", "red", "square", "left", "fast"),)), num_frames=21)
    for wrong in (
        Thing("small", "red", "square", "right", "fast"),
        Thing("small", "red", "square", "up", "fast"),
        Thing("small", "red", "square"),
    ):
        (seen,) = measure(clip, Scene("waves", (wrong,)))
        assert seen.found
        assert not seen.direction_right
        assert seen.speed == pytest.approx(0.75, abs=0.01)
    (seen,) = measure(clip, Scene("waves", (Thing("small", "red", "square", "left", "slowly"),)))
    assert seen.direction_right
    assert seen.speed_error == pytest.approx(0.5, abs=0.01)


def test_the_first_thing_is_in_front() -> None:
    things = (Thing("small", "red", "ball"), Thing("big", "green", "ball"))
    clip = (render(Scene("sand", things), [(0.5, 0.5), (0.5, 0.5)], 1) + 1) / 2
    red, green, blue = clip[:, 0, 32, 32].tolist()
    assert red > 0.65
    assert green < 0.2
    assert blue < 0.2


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_seed_draws_one_clip_and_another_seed_another(background: str) -> None:
    scene = Scene(background, (Thing("small", "red", "ball"),))
    clip, again, other = (render(scene, [(0.5, 0.5)], 9, 64, seed) for seed in (1, 1, 2))
    assert torch.equal(clip, again)
    assert (clip - other).abs().mean() > 0.02
    assert clip.abs().max() <= 1


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_the_same_picture_at_any_size(background: str) -> None:
    scene = Scene(background, (Thing("small", "red", "ball"),))
    small, large = (render(scene, [(0.1, 0.1)], 2, size, 3) for size in (64, 128))
    corner = slice(32, None)  # away from the ball; stripes have edges that fall between pixels
    difference = (small - large[..., ::2, ::2])[..., corner, corner].abs()
    assert difference.median() < 0.02


def test_only_waves_move() -> None:
    for background in BACKGROUNDS:
        clip = render(Scene(background, (Thing("small", "red", "ball"),)), [(0.5, 0.5)], 41, 64, 5)
        moved = (clip[:, 40] - clip[:, 0]).abs().mean()
        assert (moved > 0.05) == (background == "waves")


# The closed vocabulary.


def test_every_scene_fits_the_tokenizer() -> None:
    rng = random.Random(1)
    texts = [str(random_scene(rng)) for _ in range(300)]
    tokens = Tokenizer()([*texts, ""])
    assert tokens.input_ids.shape == (301, TEXT_LEN)
    assert tokens.attention_mask[-1].sum() == 1  # the empty prompt is its end mark
    lengths = tokens.attention_mask.sum(dim=1)
    assert lengths.max() <= TEXT_LEN
    assert torch.equal(tokens.input_ids.ne(0).long(), tokens.attention_mask)
    assert len({tuple(row.tolist()) for row in tokens.input_ids}) == len({*texts, ""})


def test_words_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(OptionError, match="words that TinyWan does not know: kite, purple; it knows a moves stays"):
        Tokenizer()(["a purple kite"])
    with pytest.raises(OptionError, match="has 21 words; TinyWan takes 19 at most"):
        Tokenizer()(["a " * 21])


def test_both_hosts_read_the_same_text() -> None:
    torch.manual_seed(0)
    model = TextEncoder().eval()
    texts = [ISSUE, "", "a big red ball stays over sand"]
    tokens = Tokenizer()(texts, max_length=40)
    with torch.no_grad():
        hidden = model(tokens.input_ids, tokens.attention_mask).last_hidden_state
    assert hidden.shape == (3, 40, TEXT_DIM)
    for text, row, mask in zip(texts, hidden, tokens.attention_mask, strict=True):
        (alone,) = WanTextEncoder(model)([text], torch.device("cpu"))
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=1e-5)
        assert int(mask.sum()) == len(alone)
        assert not row[len(alone) :].any()
