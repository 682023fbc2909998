"""The database: tables, statements, group commit. SQLModel and SQLAlchemy live here and nowhere else."""
