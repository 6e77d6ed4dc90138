"""`python -m outrider.fleet.db 0002 "Add a table"`: write the migration from the last revision to the models."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command

from outrider.fleet.db.database import Database, migration_config


def main() -> int:
    """Compare a freshly migrated database with the models and write what is missing as a new revision."""
    revision, message = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'fleet.db'}")
        database.migrate()
        with database.engine.begin() as connection:
            command.revision(migration_config(connection), message, autogenerate=True, rev_id=revision)
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
