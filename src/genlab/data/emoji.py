"""Emoji with their names: Google's drawings (Noto) or Twitter's (Twemoji), as emoji-data gathers them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Unpack, get_args

import numpy as np
import torch

from genlab.data.captioned import Captioned, CaptionedImages, CaptionOptions
from genlab.data.convert import TONES
from genlab.data.faces import held_out
from genlab.data.fetch import fetch, find
from genlab.data.images import Parts
from genlab.data.manifest import digest
from genlab.data.module import SPLITS, Split
from genlab.data.parallel import lines
from genlab.data.sources import ImageArrays
from genlab.errors import ConfigError
from genlab.settings import check_settings

Group = Literal["hand", "body", "smiley", "heart", "shape", "person", "nature", "food", "place", "activity", "object",
                "symbol", "flag", "component"]  # fmt: skip
GROUPS: tuple[Group, ...] = get_args(Group)
CATEGORIES: dict[str, str] = {
    "Smileys & Emotion": "smiley", "People & Body": "person", "Animals & Nature": "nature", "Food & Drink": "food",
    "Travel & Places": "place", "Activities": "activity", "Objects": "object", "Symbols": "symbol", "Flags": "flag",
    "Component": "component",
}  # fmt: skip
RENAMED = {"heavy black heart": "red heart"}  # Unicode's name is that of a letter of black ink; all draw it red
COLOURS = {"red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink"}
HEARTS = ("orange heart", "green heart", "purple heart")  # held out; circles and squares of these colours are in train


class Emoji(CaptionedImages):
    """Pictures of 64x64 on white, each with its name: "waving hand sign, dark skin tone". Fetched at first use.

    train  what is in no other split
    val    names held out with all their tones, by sha256 of the name; none that a composition of test needs, no flag or
           family, as some of these are the picture of several names
    test   held-out compositions: of each gesture (a hand or part of the body that has tones) one tone, by sha256 of its
           name, and HEARTS; the gesture is in train in its other tones, the colour on other shapes

    The label is the place of an item's group in GROUPS. `facts`: name (without the tone), tone ("" or one of TONES),
    group, other (further names, which `references` has too).

    Args:
        drawing: whose. Both have the same names, and so the same splits.
        groups: only these; None: all. [hand, body, smiley, heart, shape] is a small set.
        val_names: share of the names that are held out, about.
    """

    notes: Mapping[Split, str] = {
        "val": "names held out",
        "test": "held-out compositions of gesture and tone, colour and heart",
    }

    def __init__(
        self,
        name: str,
        *,
        drawing: Literal["google", "twitter"] = "google",
        groups: Sequence[Group] | None = None,
        val_names: Annotated[float, "gt 0, lt 1"] = 0.1,
        **options: Unpack[CaptionOptions],
    ) -> None:
        check_settings(Emoji.__init__, locals(), "data.")
        if unknown := [group for group in groups or () if group not in GROUPS]:
            raise ConfigError(f"data.groups: no group {unknown[0]!r}; choose from {', '.join(GROUPS)}")
        super().__init__(name, **options)
        self.drawing, self.groups, self.val_names = drawing, groups or GROUPS, val_names

    def filter(self) -> dict[str, Any]:
        return {"drawing": self.drawing, "groups": sorted(self.groups), "val_names": self.val_names}

    def parts(self) -> Parts:
        folder = fetch(f"emoji_{self.drawing}")
        sha256 = {file.name: file.sha256 for file in find(f"emoji_{self.drawing}").files}
        image = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
        facts = [fact_of(json.loads(line)) for line in lines(folder / "names.jsonl")]
        label = torch.tensor([GROUPS.index(fact["group"]) for fact in facts])
        images = ImageArrays(image, label, str(folder / "images.npy"))
        whole = Captioned(images, [[caption_of(fact["name"], fact["tone"])] for fact in facts], facts)
        toned = {fact["name"] for fact in facts if fact["tone"] and fact["group"] in ("hand", "body")}
        places: dict[Split, list[int]] = {split: [] for split in SPLITS}
        for place, fact in enumerate(facts):
            if fact["group"] in self.groups:
                places[split_of(fact, fact["name"] in toned, self.val_names)].append(place)
        return {split: (whole.select(np.array(ids)), digest([sha256, ids])) for split, ids in places.items() if ids}


def fact_of(record: dict[str, Any]) -> dict[str, Any]:
    """What is known of a line of names.jsonl."""
    name, tone, subcategory = RENAMED.get(record["name"], record["name"]), record["tone"], record["subcategory"]
    group = CATEGORIES[record["category"]]
    if subcategory.startswith("hand"):
        group = "hand"
    group = {"body-parts": "body", "heart": "heart", "geometric": "shape"}.get(subcategory, group)
    others = dict.fromkeys(caption_of(other, tone) for other in (record["name"], *record["other"]))
    return {
        "name": name, "tone": tone, "group": group, "other": [o for o in others if o != caption_of(name, tone)]
    }  # fmt: skip


def caption_of(name: str, tone: str) -> str:
    """A name with its tone."""
    return f"{name}, {tone} skin tone" if tone else name


def split_of(fact: dict[str, Any], toned: bool, val_names: float) -> Split:
    """The split of an item: a function of its name and tone alone, and so the same of each drawing and group.

    Args:
        toned: whether it is a gesture with tones.
    """
    name, tone = fact["name"], fact["tone"]
    if name in HEARTS or (toned and tone == held_out_tone(name)):
        return "test"
    coloured = fact["group"] in ("heart", "shape") and not COLOURS.isdisjoint(name.split())
    alike = fact["group"] == "flag" or name.startswith("family")  # some are one picture of several names
    return "train" if toned or coloured or alike or not held_out(name, val_names) else "val"


def held_out_tone(name: str) -> str:
    """The tone in which a gesture is held out."""
    return [*TONES.values()][1 + int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5]
