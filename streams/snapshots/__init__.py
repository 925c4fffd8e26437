"""The export of training sets to Parquet: labels, files, and the command that asks for it."""
