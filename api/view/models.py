"""Every model with its versions: those that were announced, and those that did not pass the gate."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sortedcontainers import SortedDict

from api.view.past_trainings import PastTrainings
from api.view.requests import StatusEntry
from foldtune.events import ModelReady, State

Keep = Callable[[str], bool]


class Version(NamedTuple):
    """A version of a model; without ``ready`` it was not promoted, and its manifest on the object store says more."""

    version: str
    request_id: str
    model_uri: str
    ready: ModelReady | None


class ModelTable:
    """Versions by model, each in the order of their publication, which their names sort by."""

    def __init__(self) -> None:
        self._versions: SortedDict[str, SortedDict[str, Version]] = SortedDict()
        self.past_trainings = PastTrainings()

    def apply(self, record: Any) -> None:
        """Add a record of ``model-ready``, however often; raises ``ValueError``."""
        ready = ModelReady.model_validate_json(record.value)
        self._add(ready.model, Version(ready.version, ready.request_id, ready.model_uri, ready))
        self.past_trainings.add(ready)

    def apply_status(self, entry: StatusEntry) -> None:
        """Add the request's model, and the version of a completed one, unless it is announced."""
        self.add_model(entry.model)
        # s3://BUCKET/…/models/MODEL/VERSION/runs/RUN
        parts = (entry.model_uri or "").split("/")
        if entry.state is State.COMPLETED and entry.model_uri and len(parts) > 3:
            version = parts[-3]
            if version not in self._versions[entry.model]:
                self._add(entry.model, Version(version, entry.request_id, entry.model_uri, None))

    def add_model(self, model: str) -> None:
        """Add a model, which may have no version yet."""
        if model not in self._versions:
            self._versions[model] = SortedDict()

    def __contains__(self, model: str) -> bool:
        """Whether anything is known of the model."""
        return model in self._versions

    def models(self, limit: int, keep: Keep, after: str | None = None) -> tuple[list[str], str | None]:
        """Names of models in their order, and after which the next page begins."""
        names: list[str] = []
        for name in self._versions.irange(minimum=after, inclusive=(False, True)):
            if len(names) == limit:
                return names, names[-1]
            if keep(name):
                names.append(name)
        return names, None

    def versions(self, model: str, limit: int, before: str | None = None) -> tuple[list[Version], str | None]:
        """A model's versions, the newest first, and before which the next page begins."""
        found = self._versions.get(model, SortedDict())
        page: list[Version] = []
        for name in found.irange(maximum=before, inclusive=(True, False), reverse=True):
            if len(page) == limit:
                return page, page[-1].version
            page.append(found[name])
        return page, None

    def get(self, model: str, version: str) -> Version | None:
        """A version of a model."""
        found = self._versions.get(model)
        return found.get(version) if found else None

    def count(self, model: str) -> int:
        """How many versions a model has."""
        return len(self._versions.get(model, ()))

    def promoted(self, model: str) -> Iterator[Version]:
        """A model's promoted versions, the newest first."""
        found = self._versions.get(model, SortedDict())
        return (version for version in reversed(found.values()) if version.ready)

    def newest_promoted(self, model: str) -> ModelReady | None:
        """The newest promoted version."""
        newest = next(self.promoted(model), None)
        return newest.ready if newest else None

    def _add(self, model: str, version: Version) -> None:
        self.add_model(model)
        self._versions[model][version.version] = version
