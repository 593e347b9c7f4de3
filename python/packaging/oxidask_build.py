"""The build backend of the wheel: maturin, with the settings that this workspace needs.

Owns one difference from plain maturin: the workspace links its programs statically, and a module
that Python loads cannot be linked so. The settings of the environment win over cargo's files, and a
target folder of its own keeps both kinds of builds apart.
"""

from __future__ import annotations

import os
from pathlib import Path

import maturin

_DYNAMIC = "-C target-feature=-crt-static"


def _prepare() -> None:
    flags = os.environ.get("RUSTFLAGS", "")
    if "crt-static" not in flags:
        os.environ["RUSTFLAGS"] = f"{flags} {_DYNAMIC}".strip()
    target = Path(__file__).resolve().parents[2] / "target" / "wheel"
    os.environ.setdefault("CARGO_TARGET_DIR", str(target))


_prepare()

build_wheel = maturin.build_wheel
build_editable = maturin.build_editable
build_sdist = maturin.build_sdist
get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
