"""Puts tiles together to a PNG."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.fleet.work import SIZE, TILE, tiles


def palette() -> list[int]:
    """Red, green, blue for every value of a pixel: black inside, then from deep blue over white to amber."""
    stops = [(0, 7, 100), (32, 107, 203), (237, 255, 255), (255, 170, 0), (60, 20, 0)]
    colours = [0, 0, 0]
    for value in range(1, 256):
        # The square root gives the many small values most of the colours.
        place = (value / 255) ** 0.5 * (len(stops) - 1)
        low = min(int(place), len(stops) - 2)
        mix = place - low
        colours += [
            round(a + (b - a) * mix) for a, b in zip(stops[low], stops[low + 1], strict=True)
        ]  # fmt: skip
    return colours


def save(pixels: dict[int, bytes], path: Path) -> None:
    """Write the whole picture."""
    picture = Image.new("P", (SIZE, SIZE))
    picture.putpalette(palette())
    for tile in tiles():
        part = Image.frombytes("P", (TILE, TILE), pixels[tile["tile"]])
        picture.paste(part, (tile["x"], tile["y"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
