#!/usr/bin/python
# ruff: noqa: E402 -- Ansible wants a module's documentation above its imports.
"""Make, on the controller, the wheels that one kind of host needs."""

DOCUMENTATION = r"""
module: wheelhouse
short_description: Make the wheels of GridCore for one architecture and Python
description:
  - Builds the wheel of the project and downloads the wheels of everything it needs, for another machine's
    architecture and Python, so that the host itself needs no index, no compiler and no C(pip).
  - Meant for C(delegate_to=localhost). The result is kept in O(cache) until the project's source changes.
options:
  source:
    description: Folder of the project (where C(pyproject.toml) is).
    type: path
    required: true
  cache:
    description: Folder that keeps the wheelhouses.
    type: path
    required: true
  extra:
    description: The extra to install, C(hub) or C(agent).
    type: str
    required: true
  architecture:
    description: Userland architecture of the hosts, in Python's words.
    type: str
    choices: [x86_64, aarch64, armv7l]
    required: true
  python_version:
    description: Python of the hosts, for example C(3.11).
    type: str
    required: true
  executable:
    description:
      - Python on the controller whose C(pip) does the work, by default the one that runs this module.
      - C(pip) takes environment markers from the Python that runs it, so give one of the hosts' version if a
        dependency turns out to be missing on hosts with a much older or newer Python.
    type: path
author:
  - The GridCore engineers
"""

EXAMPLES = r"""
- name: Make the agent's wheels for 64-bit Raspberry Pis
  idm.gridcore.wheelhouse:
    source: /srv/gridcore
    cache: ~/.cache/idm-gridcore/wheelhouse
    extra: agent
    architecture: aarch64
    python_version: "3.11"
  delegate_to: localhost
"""

RETURN = r"""
release:
  description: Hash of the wheels, the same for the same content.
  type: str
  returned: always
archive:
  description: Path of the tar archive of a folder C(wheels) with all of them.
  type: str
  returned: always
project:
  description: File name of the project's own wheel.
  type: str
  returned: always
pip:
  description: File name of the wheel of C(pip).
  type: str
  returned: always
"""

import hashlib
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# What decides the project's own wheel.
SOURCES = ("pyproject.toml", "README.md", "gridcore", "hub", "agent")

# Wheels for glibc up to what every supported host has (Debian 12, Ubuntu 22.04, RHEL 9).
GLIBC = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 28, 31, 34)))

# Wheelhouses kept for one kind of host: the current one, and the one to go back to.
KEEP = 2


def digest_of(files, root):
    """Return a hash over names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def source_digest(source):
    """Return a hash over everything the project's wheel is built from."""
    files = []
    for name in SOURCES:
        path = source / name
        if path.is_dir():
            files += [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        elif path.is_file():
            files.append(path)
    return digest_of(files, source)


def build(module, source, target):
    """Fill the folder `target` with wheels; ends the module with pip's own words if that fails."""
    pip = [module.params["executable"] or sys.executable, "-m", "pip", "--disable-pip-version-check"]
    version = module.params["python_version"]

    def run(what, *arguments):
        code, out, err = module.run_command([*pip, *arguments])
        if code:
            module.fail_json(msg=f"{what} failed on the controller: {err.strip() or out.strip()}", rc=code)

    run(
        f"Building the wheel of {source}",
        "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source),
    )  # fmt: skip
    (wheel,) = target.glob("*.whl")
    platforms = [f"--platform={glibc}_{module.params['architecture']}" for glibc in GLIBC]
    run(
        f"Downloading wheels for {module.params['architecture']}, Python {version}",
        "download", "--quiet", "--only-binary=:all:", *platforms,
        "--implementation=cp", f"--python-version={version}",
        "--dest", str(target), "pip", f"{wheel}[{module.params['extra']}]",
    )  # fmt: skip


def make(module, source, folder):
    """Build next to `folder` and rename: a run that was broken off leaves nothing that looks complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        wheels = work / "wheels"
        wheels.mkdir()
        build(module, source, wheels)
        with tarfile.open(work / "wheels.tar", "w") as archive:
            for wheel in sorted(wheels.glob("*.whl")):
                archive.add(wheel, arcname=f"wheels/{wheel.name}")
        try:
            work.rename(folder)
        except OSError:
            # Another run on this controller made the same one in the meantime.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)

    kept = sorted(
        (path for path in folder.parent.iterdir() if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for old in kept[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def main():
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
            "extra": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True, "choices": ["x86_64", "aarch64", "armv7l"]},
            "python_version": {"type": "str", "required": True},
            "executable": {"type": "path"},
        },
        # The cache on the controller is no host's state: it is made in check mode too, because without it
        # nobody could say whether a host would change.
        supports_check_mode=True,
    )
    source = Path(module.params["source"]).resolve()
    if not (source / "pyproject.toml").is_file():
        module.fail_json(
            msg=f"no pyproject.toml in {source}: set gridcore_source to a checkout of the project"
            " on the controller, or gridcore_index_url and gridcore_version to install from a package index"
        )
    kind = "-".join(module.params[name] for name in ("architecture", "python_version", "extra"))
    folder = Path(module.params["cache"]) / kind / source_digest(source)
    made = not folder.is_dir()
    if made:
        make(module, source, folder)

    wheels = list((folder / "wheels").glob("*.whl"))
    module.exit_json(
        changed=made,
        release=digest_of(wheels, folder),
        archive=str(folder / "wheels.tar"),
        project=next(wheel.name for wheel in wheels if wheel.name.startswith("idm_gridcore-")),
        pip=next(wheel.name for wheel in wheels if wheel.name.startswith("pip-")),
    )


if __name__ == "__main__":
    main()
