"""Adds the packages, which lie beside this folder, to the wheel of ``foldtune-server``."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("api", "demo", "infra", "launchers", "notifications", "streams", "trainers")


class PackagesHook(BuildHookInterface[Any]):
    """An editable install refers to the packages' folders instead: a copy in it would go stale, and be imported first.

    Hatch's own ``force-include`` copies in both cases.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"] |= {f"../{package}": package for package in PACKAGES}
