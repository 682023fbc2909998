"""What is done in a transaction of the store, one file for each family of operations."""
