"""Patches of instances are undone exactly, whatever happened in between."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from halfframe.hosts.patching import Patches


class Thing:
    attribute = "the class's"

    def method(self) -> str:
        return "original"


@pytest.fixture
def thing() -> Thing:
    return Thing()


def test_an_attribute_that_was_not_the_instances_is_deleted(thing: Thing) -> None:
    with Patches() as patches:
        patches.set(thing, "method", lambda: "patched")
        patches.set(thing, "entirely_new", 1)
        assert thing.method() == "patched"
        assert Thing().method() == "original"
    assert vars(thing) == {}
    assert thing.method() == "original"


def test_an_attribute_that_was_the_instances_is_restored(thing: Thing) -> None:
    mine = object()
    thing.attribute = mine  # type: ignore[assignment]
    with Patches() as patches:
        patches.set(thing, "attribute", "patched")
    assert vars(thing) == {"attribute": mine}
    assert thing.attribute is mine


def test_an_instance_attribute_that_was_none_is_restored_as_none(thing: Thing) -> None:
    thing.attribute = None  # type: ignore[assignment]
    with Patches() as patches:
        patches.set(thing, "attribute", "patched")
    assert vars(thing) == {"attribute": None}


def test_neither_the_class_nor_a_sibling_sees_a_patch(thing: Thing) -> None:
    before = dict(vars(Thing))
    with Patches() as patches:
        patches.set(thing, "attribute", "patched")
        assert Thing().attribute == "the class's"
        assert dict(vars(Thing)) == before


def test_patches_on_patches_come_off_last_first(thing: Thing) -> None:
    thing.attribute = "first"
    seen: list[str] = []

    class Recording(Thing):
        def __setattr__(self, name: str, value: Any) -> None:
            seen.append(value)
            super().__setattr__(name, value)

    recording = Recording()
    recording.attribute = "first"
    with Patches() as patches:
        patches.set(recording, "attribute", "second")
        patches.set(recording, "attribute", "third")
    assert seen == ["first", "second", "third", "second", "first"]


def test_several_objects_at_once(thing: Thing) -> None:
    other = Thing()
    other.attribute = "mine"
    with Patches() as patches:
        patches.set(thing, "attribute", "patched")
        patches.set(other, "attribute", "patched")
    assert vars(thing) == {}
    assert vars(other) == {"attribute": "mine"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_passes_through_and_everything_is_undone(thing: Thing, error: type[BaseException]) -> None:
    def patch_and_fail() -> None:
        with Patches() as patches:
            patches.set(thing, "attribute", "patched")
            raise error

    with pytest.raises(error):
        patch_and_fail()
    assert vars(thing) == {}


def test_a_patch_that_cannot_be_made_leaves_the_others_undoable() -> None:
    class Guarded(Thing):
        @property
        def fixed(self) -> str:
            return "fixed"

    guarded = Guarded()
    with Patches() as patches:
        patches.set(guarded, "attribute", "patched")
        with pytest.raises(AttributeError):
            patches.set(guarded, "fixed", "patched")
        assert guarded.attribute == "patched"
    assert vars(guarded) == {}


def test_undoing_twice_is_undoing_once(thing: Thing) -> None:
    patches = Patches()
    patches.set(thing, "attribute", "patched")
    patches.undo()
    thing.attribute = "set afterwards"
    patches.undo()
    assert thing.attribute == "set afterwards"


def test_somebody_elses_later_patch_stays_and_is_logged(thing: Thing, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="halfframe"), Patches() as patches:
        patches.set(thing, "method", lambda: "ours")
        patches.set(thing, "attribute", "ours")
        thing.method = lambda: "theirs"  # type: ignore[method-assign]
    assert thing.method() == "theirs"
    assert "attribute" not in vars(thing)  # what is still ours is undone all the same
    (record,) = caplog.records
    assert "Thing.method was replaced while halfframe had patched it; left as it is" in record.getMessage()


def test_an_attribute_that_somebody_deleted_stays_deleted(thing: Thing, caplog: pytest.LogCaptureFixture) -> None:
    thing.attribute = "before"
    with caplog.at_level(logging.WARNING, logger="halfframe"), Patches() as patches:
        patches.set(thing, "attribute", "ours")
        del thing.attribute
    assert vars(thing) == {}
    assert "Thing.attribute was replaced" in caplog.text


def test_undoing_cleanly_logs_no_warning(thing: Thing, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="halfframe"), Patches() as patches:
        patches.set(thing, "attribute", "patched")
    assert not caplog.records


def test_a_torch_modules_forward_is_patched_on_the_instance() -> None:
    module = torch.nn.Linear(2, 2)
    before = dict(vars(module))
    with Patches() as patches:
        patches.set(module, "forward", lambda x: x * 0)
        assert not module(torch.ones(1, 2)).any()
    assert dict(vars(module)) == before
    assert module(torch.ones(1, 2)).any()


# An object's class, and other things to undo.


def test_an_objects_class_is_put_back(thing: Thing) -> None:
    with Patches() as patches:
        patches.methods(thing, {"method": lambda original, obj: "patched"})
        assert thing.method() == "patched"
        assert Thing().method() == "original"
    assert type(thing) is Thing
    assert vars(thing) == {}


def test_a_class_that_somebody_else_set_later_stays_and_is_logged(
    thing: Thing, caplog: pytest.LogCaptureFixture
) -> None:
    class Theirs(Thing): ...

    with caplog.at_level(logging.WARNING, logger="halfframe"), Patches() as patches:
        patches.methods(thing, {"method": lambda original, obj: "patched"})
        thing.__class__ = Theirs
    assert type(thing) is Theirs
    assert "__class__ was replaced while halfframe had patched it" in caplog.text


def test_callbacks_take_their_turn_among_the_patches(thing: Thing) -> None:
    seen: list[str] = []
    with Patches() as patches:
        patches.set(thing, "attribute", "first")
        patches.callback(lambda: seen.append(thing.attribute))
        patches.set(thing, "attribute", "second")
    assert seen == ["first"]
    assert thing.attribute == "the class's"


def test_a_callback_that_raises_does_not_keep_the_rest_from_being_undone(thing: Thing) -> None:
    def fail() -> None:
        raise ValueError("in the callback")

    patches = Patches()
    patches.set(thing, "attribute", "patched")
    patches.callback(fail)
    with pytest.raises(ValueError, match="in the callback"):
        patches.undo()
    assert vars(thing) == {}


def test_patches_know_whether_they_are_still_in_force(thing: Thing) -> None:
    with Patches() as patches:
        patches.set(thing, "attribute", "patched")
        assert patches.active
    assert not patches.active
