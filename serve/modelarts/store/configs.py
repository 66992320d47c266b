"""Saved training configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.modelarts.store.tables import TrainingConfigRow
from tandem.serve.store.database import Database

ConfigOrder = Literal["config_name", "config_desc", "create_time"]
_COLUMN = {
    "config_name": TrainingConfigRow.name,
    "config_desc": TrainingConfigRow.description,
    "create_time": TrainingConfigRow.number,
}


class ConfigTable(Database):
    """Queries and changes of saved configurations. Other projects' don't exist for a caller."""

    def add_training_config(self, project: str, name: str, description: str, settings: Mapping[str, Any]) -> None:
        """Raises ConflictError when the name is taken."""
        row = TrainingConfigRow(
            project=project, name=name, description=description, settings=dict(settings), created_at=self._clock()
        )
        try:
            with self._write() as session:
                session.add(row)
        except IntegrityError:
            raise ConflictError(f"Config name:{name} is existed", "training_config_exists", "config_name") from None

    def training_config(self, project: str, name: str) -> TrainingConfigRow:
        """Raises NotFoundError."""
        with self._read() as session:
            return _find(session, project, name)

    def training_configs(
        self, project: str, limit: int, offset: int, order: ConfigOrder, descending: bool, search: str | None
    ) -> tuple[Sequence[TrainingConfigRow], int]:
        """A page, and how many there are in all. `search` is looked for in names and descriptions."""
        query = select(TrainingConfigRow).where(TrainingConfigRow.project == project)
        if search:
            query = query.where(
                or_(
                    TrainingConfigRow.name.icontains(search, autoescape=True),
                    TrainingConfigRow.description.icontains(search, autoescape=True),
                )
            )
        column = _COLUMN[order]
        columns = [one.desc() if descending else one for one in (column, TrainingConfigRow.number)]
        with self._read() as session:
            total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
            return session.scalars(query.order_by(*columns).limit(limit).offset(offset)).all(), total

    def replace_training_config(self, project: str, name: str, description: str, settings: Mapping[str, Any]) -> None:
        """Raises NotFoundError."""
        with self._write() as session:
            row = _find(session, project, name, lock=True)
            row.description, row.settings = description, dict(settings)

    def delete_training_config(self, project: str, name: str) -> None:
        """Raises NotFoundError. Jobs that were made from it have settings of their own."""
        with self._write() as session:
            session.delete(_find(session, project, name, lock=True))


def _find(session: Session, project: str, name: str, lock: bool = False) -> TrainingConfigRow:
    query = select(TrainingConfigRow).where(TrainingConfigRow.project == project, TrainingConfigRow.name == name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFoundError(
            f"There is no training configuration {name!r} in this project.", "training_config_not_found", "config_name"
        )
    return row
