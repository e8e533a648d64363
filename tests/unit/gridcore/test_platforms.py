"""What engines, kernels and the protocol call a machine."""

from __future__ import annotations

import pytest

from gridcore.platforms import (
    PLATFORMS,
    architecture_of,
    canonical_platform,
    is_known_architecture,
    platform_of,
    runs_on,
)


@pytest.mark.parametrize(
    ("architecture", "platform"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("arm", "linux/arm/v7"),
        ("armv7l", "linux/arm/v7"),
        ("riscv64", "linux/amd64"),  # an unknown one counts as amd64, as existing hubs do
    ],
)
def test_each_architecture_has_its_platform(architecture: str, platform: str) -> None:
    assert platform_of(architecture) == platform


def test_reported_names_are_the_fixed_protocols() -> None:
    assert [architecture_of(platform) for platform in PLATFORMS] == ["x86_64", "aarch64", "arm"]
    assert all(platform_of(architecture_of(platform)) == platform for platform in PLATFORMS)


def test_armv6_is_not_taken_for_armv7() -> None:
    assert not is_known_architecture("armv6l")


@pytest.mark.parametrize(
    ("spelling", "platform"),
    [
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("LINUX/AMD64", "linux/amd64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_engines_spellings_become_ours(spelling: str, platform: str) -> None:
    assert canonical_platform(spelling) == platform


def test_an_image_runs_on_its_own_platform() -> None:
    assert runs_on("linux/arm64", "linux/arm64")
    assert not runs_on("linux/arm64", "linux/amd64")
    assert runs_on("linux/386", "linux/amd64")
