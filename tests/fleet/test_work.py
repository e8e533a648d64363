"""The proof itself is proved: it sees what is missing, wrong or double, and puts a picture together right."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.fleet import picture, work
from tests.fleet.engine import FleetError


def test_exact_squares_are_exact_in_any_order() -> None:
    results = iter(["2:4", "0:0", "1:1"])
    assert work.verify_squares(results, 3) == work.Squares(missing=0, wrong=0, duplicates=0)


@pytest.mark.parametrize("bad", ["2:5", "3:9", "-1:1", "2:", "two:4", "", "2", "02 :4"])
def test_what_is_not_a_square_of_ours_is_wrong(bad: str) -> None:
    found = work.verify_squares(iter(["0:0", "1:1", bad]), 3)
    assert (found.missing, found.wrong, found.exact) == (1, 1, False)


def test_duplicates_are_counted_and_do_not_stand_in_for_what_is_missing() -> None:
    found = work.verify_squares(iter(["0:0", "1:1", "1:1"]), 3)
    assert (found.missing, found.wrong, found.duplicates, found.exact) == (1, 0, 1, False)
    assert "2" in found.example


def test_the_tiles_cover_the_picture_once() -> None:
    covered = {(tile["x"], tile["y"]) for tile in work.tiles()}
    assert len(work.tiles()) == len(covered) == 256


def results(pixels: dict[int, bytes]) -> list[str]:
    return [
        json.dumps(
            {"tile": tile["tile"], "x": tile["x"], "y": tile["y"]}
            | {"pixels": base64.b64encode(zlib.compress(pixels[tile["tile"]])).decode()}
        )
        for tile in work.tiles()
    ]


FLAT = {tile["tile"]: bytes([tile["tile"]]) * work.TILE**2 for tile in work.tiles()}


def test_tiles_come_back_whatever_their_order_and_double() -> None:
    back = results(FLAT)
    assert work.collect_tiles(iter([back[7], *reversed(back)])) == FLAT


def test_a_missing_or_different_tile_is_seen() -> None:
    back = results(FLAT)
    with pytest.raises(FleetError, match="1 tiles never came back, such as 255"):
        work.collect_tiles(iter(back[:-1]))
    with pytest.raises(FleetError, match="tile 0 came back twice"):
        work.collect_tiles(iter([*back, results({**FLAT, 0: FLAT[1]})[0]]))


def test_pixels_that_this_machine_does_not_compute_are_seen() -> None:
    with pytest.raises(FleetError, match="is not what this machine computes"):
        work.recompute(FLAT)


def test_the_picture_has_every_tile_at_its_place(tmp_path: Path) -> None:
    picture.save(FLAT, tmp_path / "out" / "flat.png")
    with Image.open(tmp_path / "out" / "flat.png") as image:
        for tile in work.tiles():
            place = (tile["x"] + work.TILE - 1, tile["y"] + work.TILE - 1)
            expected = picture.palette()[3 * tile["tile"] : 3 * tile["tile"] + 3]
            assert list(image.convert("RGB").getpixel(place) or ()) == expected  # type: ignore[arg-type]
