"""Names of machines: what an engine, a kernel and the wire protocol call the same thing."""

from __future__ import annotations

AMD64 = "linux/amd64"
ARM64 = "linux/arm64"
ARMV7 = "linux/arm/v7"
PLATFORMS = (AMD64, ARM64, ARMV7)

DEFAULT_PLATFORM = AMD64
"""What the wire protocol assumes of a request that names no platform, or of an unknown architecture."""

_PLATFORM_OF = {
    "x86_64": AMD64,
    "amd64": AMD64,
    "aarch64": ARM64,
    "arm64": ARM64,
    "arm": ARMV7,
    "armv7l": ARMV7,
    "armhf": ARMV7,
}
_ARCHITECTURE_OF = {AMD64: "x86_64", ARM64: "aarch64", ARMV7: "arm"}


def platform_of(architecture: str) -> str:
    """The container platform of an architecture's name; an unknown one counts as `linux/amd64`."""
    return _PLATFORM_OF.get(architecture.strip().lower(), DEFAULT_PLATFORM)


def is_known_architecture(architecture: str) -> bool:
    """Whether we know what images run on it; `armv6l` for one is unknown."""
    return architecture.strip().lower() in _PLATFORM_OF


def architecture_of(platform: str) -> str:
    """The name that the wire protocol reports (`x86_64`, `aarch64`, `arm`) for a platform of ours."""
    return _ARCHITECTURE_OF[platform]


def canonical_platform(text: str) -> str:
    """`linux/arm64/v8` and the like in our spelling; anything else comes back as it is."""
    parts = text.strip().lower().split("/")
    if len(parts) >= 2 and parts[0] == "linux" and parts[1] in _PLATFORM_OF:
        return _PLATFORM_OF[parts[1]]
    return text


def runs_on(image_platform: str, platform: str) -> bool:
    """Whether a node of `platform` runs an image made for `image_platform`; 32-bit x86 counts, too."""
    return image_platform == platform or (image_platform, platform) == ("linux/386", AMD64)
