"""Saved configurations: named settings of training jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.modelarts.store.tables import SavedConfigRow
from tandem.serve.store.database import Database

ConfigOrder = Literal["config_name", "config_desc", "create_time"]
_COLUMN = {
    "config_name": SavedConfigRow.name,
    "config_desc": SavedConfigRow.description,
    "create_time": SavedConfigRow.number,
}


class SavedConfigs:
    """A caller sees the configurations of its own project only."""

    def __init__(self, database: Database):
        self._database = database

    def add(self, project: str, name: str, description: str, settings: Mapping[str, Any]) -> None:
        """Save a configuration. Raises ConflictError if the name is taken."""
        now = self._database.now()
        row = SavedConfigRow(
            project=project, name=name, description=description, settings=dict(settings), created_at=now
        )
        try:
            with self._database.write() as session:
                session.add(row)
        except IntegrityError:
            # The wording is that of the API family.
            raise ConflictError(f"Config name:{name} is existed", "training_config_exists", "config_name") from None

    def get(self, project: str, name: str) -> SavedConfigRow:
        """Return a configuration. Raises NotFoundError."""
        with self._database.read() as session:
            return _find(session, project, name)

    def page(
        self, project: str, limit: int, offset: int, order: ConfigOrder, descending: bool, search: str | None
    ) -> tuple[Sequence[SavedConfigRow], int]:
        """Return one page and the total number. `search` matches part of a name or of a description."""
        query = select(SavedConfigRow).where(SavedConfigRow.project == project)
        if search:
            query = query.where(
                or_(
                    SavedConfigRow.name.icontains(search, autoescape=True),
                    SavedConfigRow.description.icontains(search, autoescape=True),
                )
            )
        columns = [one.desc() if descending else one for one in (_COLUMN[order], SavedConfigRow.number)]
        with self._database.read() as session:
            total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
            return session.scalars(query.order_by(*columns).limit(limit).offset(offset)).all(), total

    def replace(self, project: str, name: str, description: str, settings: Mapping[str, Any]) -> None:
        """Replace a configuration as a whole. Raises NotFoundError."""
        with self._database.write() as session:
            row = _find(session, project, name, lock=True)
            row.description, row.settings = description, dict(settings)

    def delete(self, project: str, name: str) -> None:
        """Delete a configuration; jobs that used it keep their own settings. Raises NotFoundError."""
        with self._database.write() as session:
            session.delete(_find(session, project, name, lock=True))


def _find(session: Session, project: str, name: str, lock: bool = False) -> SavedConfigRow:
    query = select(SavedConfigRow).where(SavedConfigRow.project == project, SavedConfigRow.name == name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFoundError(
            f"Project {project} has no saved configuration {name!r}.", "training_config_not_found", "config_name"
        )
    return row
