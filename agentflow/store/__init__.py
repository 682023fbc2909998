"""The database: tables, statements, group commit. SQLModel and SQLAlchemy live here and nowhere else.

`protocol` and the `*_types` are what others see. An operation is a value (`operation_types`) whose logic (`operations`)
is made of statements (`statements`); writers gather them into batches, which one of the two stores (`sqlite`,
`postgres`) commits. `queries` reads what people look at, and `records` makes values of it.
"""
