"""Scenes: rendered 32x32 RGB images with captions, masks and exact counterfactuals.

A scene is a small symbolic description (objects, background, letter). Its image is a pure function of the description.
So an edit is a change of the description, and its ground truth is the image of the changed description: every pixel
that the edit should not change is bit-equal in both images. The split and the index alone determine a scene.

No torch. Images are float32 numpy arrays [3, 32, 32] in [0, 1], masks are bool [32, 32].
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.data.base import EditItem, Item

SIZE = 32
SPLITS = ("train", "test")

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.72, 0.18),
    "blue": (0.13, 0.25, 0.92),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.62, 0.14, 0.80),
    "cyan": (0.10, 0.85, 0.90),
}
SHAPES = ("circle", "square", "triangle", "cross")
PATTERNS = ("plain", "striped", "checked", "gradient")
TONES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "gray": ((0.62, 0.62, 0.62), (0.42, 0.42, 0.42)),
    "brown": ((0.60, 0.47, 0.36), (0.42, 0.31, 0.23)),
    "slate": ((0.46, 0.55, 0.62), (0.29, 0.36, 0.44)),
    "pink": ((0.88, 0.70, 0.72), (0.70, 0.52, 0.56)),
}
# The strokes of each letter as (x0, y0, x1, y1) in a unit box, with x to the right and y down.
LETTERS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "A": ((0, 1, 0.5, 0), (0.5, 0, 1, 1), (0.22, 0.62, 0.78, 0.62)),
    "E": ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0.5, 0.8, 0.5), (0, 1, 1, 1)),
    "H": ((0, 0, 0, 1), (1, 0, 1, 1), (0, 0.5, 1, 0.5)),
    "L": ((0, 0, 0, 1), (0, 1, 1, 1)),
    "T": ((0, 0, 1, 0), (0.5, 0, 0.5, 1)),
    "X": ((0, 0, 1, 1), (1, 0, 0, 1)),
}
INKS = {"black": (0.03, 0.03, 0.03), "white": (0.98, 0.98, 0.98)}
EDITS = ("recolour", "remove", "replace", "restyle", "insert_text", "change_text")


@dataclass(frozen=True)
class Thing:
    """One object: its centre (x, y) and radius in pixels, its angle in radians."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Background:
    """A pattern in two shades of one tone; period in pixels, angle in radians, phase in [0, 1)."""

    pattern: str
    tone: str
    period: float
    angle: float
    phase: float


@dataclass(frozen=True)
class Scene:
    """The description of an image. `spot` is (x, y) of the letter's top left corner in pixels, `ink` its colour.

    Both are set even if `letter` is None, so that an inserted letter has exactly one correct place and colour.
    """

    things: tuple[Thing, ...]
    background: Background
    letter: str | None
    spot: tuple[float, float]
    ink: str

    @property
    def caption(self) -> str:
        """The caption, such as `a red circle and a blue square on a striped gray background with the letter A`."""
        return caption_of(
            [(thing.color, thing.shape) for thing in self.things],
            self.background.pattern,
            self.background.tone,
            self.letter,
        )


def caption_of(things: Sequence[tuple[str, str]], pattern: str, tone: str, letter: str | None) -> str:
    """Return the caption of a description. `things` are (colour, shape), from left to right."""
    objects = " and ".join(f"a {color} {shape}" for color, shape in things) or "nothing"
    tail = f" with the letter {letter}" if letter else ""
    return f"{objects} on a {pattern} {tone} background{tail}"


def generator(split: str, index: int, purpose: str = "scene") -> np.random.Generator:
    """Return a Philox generator with a key of split, index and purpose, so that no draw depends on another."""
    digest = hashlib.blake2b(f"scenes-1|{split}|{index}|{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def scene(split: str, index: int) -> Scene:
    """Return scene number `index` (0, 1, ...) of a split (`train` or `test`)."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = generator(split, index)
    things = _place(rng, 1 + int(rng.random() < 0.4))
    background = Background(
        pattern=str(rng.choice(PATTERNS)),
        tone=str(rng.choice(list(TONES))),
        period=float(rng.uniform(6, 11)),
        angle=float(rng.uniform(0, math.pi)),
        phase=float(rng.random()),
    )
    letter = str(rng.choice(list(LETTERS))) if rng.random() < 0.4 else None
    return Scene(things, background, letter, _free_corner(things), str(rng.choice(list(INKS))))


def _place(rng: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """Draw `count` things that do not touch each other, ordered from left to right."""
    largest = 10.0 if count == 1 else 7.0
    while True:
        things = []
        for _ in range(count):
            radius = rng.uniform(5.5, largest)
            x, y = rng.uniform(radius + 1, SIZE - radius - 1, 2)
            things.append(
                Thing(
                    str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))), float(x), float(y), float(radius),
                    float(rng.uniform(-0.25, 0.25)),
                )
            )  # fmt: skip
        things.sort(key=lambda thing: thing.x)
        if count == 1 or _gap(things[0], things[1]) > 1.5:
            return tuple(things)


def _gap(a: Thing, b: Thing) -> float:
    return math.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius


def _free_corner(things: Sequence[Thing]) -> tuple[float, float]:
    """Return the corner that is farthest from all things, as the top left (x, y) of a 7x8 pixel letter."""
    corners = [(2.5, 2.5), (22.5, 2.5), (2.5, 21.5), (22.5, 21.5)]

    def clearance(corner: tuple[float, float]) -> float:
        return min((math.hypot(t.x - corner[0] - 3.5, t.y - corner[1] - 4) - t.radius for t in things), default=0.0)

    return max(corners, key=clearance)


# --- rendering -------------------------------------------------------------------------------------------------

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64) + 0.5


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Return the anti-aliased coverage in [0, 1] of a signed distance in pixels."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _thing_coverage(thing: Thing) -> np.ndarray:
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    dx, dy, r = _X - thing.x, _Y - thing.y, thing.radius
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    if thing.shape == "circle":
        return _coverage(np.hypot(x, y) - r)
    if thing.shape == "square":
        return _coverage(np.maximum(np.abs(x), np.abs(y)) - 0.82 * r)
    if thing.shape == "cross":
        bar = np.maximum(np.abs(x) - r, np.abs(y) - 0.32 * r)
        return _coverage(np.minimum(bar, np.maximum(np.abs(y) - r, np.abs(x) - 0.32 * r)))
    if thing.shape == "triangle":
        side = 0.5 * math.sqrt(3.0)
        return _coverage(np.maximum(side * np.abs(x) - 0.5 * y - 0.5 * r, y - 0.5 * r))
    raise ValueError(f"unknown shape {thing.shape!r}; known: {', '.join(SHAPES)}")


def _letter_coverage(letter: str, spot: tuple[float, float]) -> np.ndarray:
    best = np.full((SIZE, SIZE), np.inf)
    for x0, y0, x1, y1 in LETTERS[letter]:
        ax, ay, bx, by = spot[0] + 7 * x0, spot[1] + 8 * y0, spot[0] + 7 * x1, spot[1] + 8 * y1
        dx, dy = bx - ax, by - ay
        along = np.clip(((_X - ax) * dx + (_Y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        best = np.minimum(best, np.hypot(_X - ax - along * dx, _Y - ay - along * dy))
    return _coverage(best - 0.85)


def _background(background: Background) -> np.ndarray:
    light, dark = (np.array(c)[:, None, None] for c in TONES[background.tone])
    cos, sin = math.cos(background.angle), math.sin(background.angle)
    u, v = cos * _X + sin * _Y, cos * _Y - sin * _X
    if background.pattern == "plain":
        mix = np.zeros_like(_X)
    elif background.pattern == "gradient":
        mix = np.clip((u - u.min()) / (u.max() - u.min()), 0, 1)
    else:
        wave = np.sin(2 * math.pi * (u / background.period + background.phase))
        if background.pattern == "checked":
            wave = wave * np.sin(2 * math.pi * v / background.period)
        elif background.pattern != "striped":
            raise ValueError(f"unknown pattern {background.pattern!r}; known: {', '.join(PATTERNS)}")
        mix = 0.5 + 0.5 * np.clip(2.0 * wave, -1, 1)
    return light + (dark - light) * mix


def render(scene: Scene) -> np.ndarray:
    """Return the image of a scene: float32 [3, 32, 32] in [0, 1]."""
    image = _background(scene.background)
    for thing in scene.things:
        cover = _thing_coverage(thing)
        image = image + cover * (np.array(COLORS[thing.color])[:, None, None] - image)
    if scene.letter:
        cover = _letter_coverage(scene.letter, scene.spot)
        image = image + cover * (np.array(INKS[scene.ink])[:, None, None] - image)
    return image.astype(np.float32)


def object_masks(scene: Scene) -> np.ndarray:
    """Return masks of the things, from left to right, then of the letter: bool [n + 1, 32, 32].

    The mask of the letter is empty if there is no letter.
    """
    covers = [_thing_coverage(thing) > 0 for thing in scene.things]
    letter = _letter_coverage(scene.letter, scene.spot) > 0 if scene.letter else np.zeros((SIZE, SIZE), bool)
    return np.stack([*covers, letter])


# --- edits -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """An edit with its exact answer. `mask`, bool [32, 32], marks every pixel that may change."""

    kind: str
    source: Scene
    target: Scene
    mask: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        return render(self.target)


def edit(scene: Scene, kind: str, rng: np.random.Generator) -> Edit | None:
    """Draw an edit of the given kind. Return None if it is not possible for the scene (no letter to change, ...)."""
    if kind not in EDITS:
        raise ValueError(f"unknown edit {kind!r}; known: {', '.join(EDITS)}")
    target = _edited(scene, kind, rng)
    if target is None:
        return None
    return Edit(kind, scene, target, edit_mask(scene, target))


def edit_mask(source: Scene, target: Scene) -> np.ndarray:
    """Return the mask of pixels that source and target draw differently, for any colours: bool [32, 32]."""
    if source.background != target.background:
        solid = [_thing_coverage(t) >= 1 for t in target.things]
        if target.letter:
            solid.append(_letter_coverage(target.letter, target.spot) >= 1)
        return ~np.any(solid, axis=0) if solid else np.ones((SIZE, SIZE), bool)
    mask = np.zeros((SIZE, SIZE), bool)
    for thing in set(source.things) ^ set(target.things):
        mask |= _thing_coverage(thing) > 0
    if source.letter != target.letter:
        for letter in (source.letter, target.letter):
            if letter:
                mask |= _letter_coverage(letter, source.spot) > 0
    return mask


def _other(rng: np.random.Generator, options: Sequence[str], current: str | None) -> str:
    return str(rng.choice([option for option in options if option != current]))


def _edited(scene: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    i = int(rng.integers(len(scene.things)))
    if kind == "recolour":
        thing = dataclasses.replace(scene.things[i], color=_other(rng, list(COLORS), scene.things[i].color))
        return dataclasses.replace(scene, things=(*scene.things[:i], thing, *scene.things[i + 1 :]))
    if kind == "replace":
        thing = dataclasses.replace(scene.things[i], shape=_other(rng, SHAPES, scene.things[i].shape))
        return dataclasses.replace(scene, things=(*scene.things[:i], thing, *scene.things[i + 1 :]))
    if kind == "remove":
        if len(scene.things) < 2:
            return None
        return dataclasses.replace(scene, things=scene.things[:i] + scene.things[i + 1 :])
    if kind == "restyle":
        pattern = _other(rng, PATTERNS, scene.background.pattern)
        return dataclasses.replace(scene, background=dataclasses.replace(scene.background, pattern=pattern))
    if (kind == "insert_text") == (scene.letter is not None):
        return None
    return dataclasses.replace(scene, letter=_other(rng, list(LETTERS), scene.letter))


# --- the data set ----------------------------------------------------------------------------------------------


class Scenes:
    """The scenes of a split as a data set (`bench.data.base.Dataset`). Ids are `scenes/SPLIT/INDEX`.

    A split has no end. Its length is set to a million.
    """

    shape = (3, SIZE, SIZE)
    edits: Sequence[str] = EDITS

    def __init__(self, split: str = "test") -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.split = split

    def __len__(self) -> int:
        return 1_000_000

    def item(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"scenes has {len(self)} images, got index {index}")
        drawn = scene(self.split, index)
        return Item(f"scenes/{self.split}/{index:06d}", render(drawn), drawn.caption)

    def edit(self, index: int, kind: str) -> EditItem | None:
        drawn = edit(scene(self.split, index), kind, generator(self.split, index, kind))
        return None if drawn is None else EditItem(drawn.target.caption, drawn.truth, drawn.mask)
