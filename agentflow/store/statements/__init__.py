"""The SQL that operations are made of, written once for both databases."""
