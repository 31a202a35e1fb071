"""Data sets, read from the files in which they are published: one reader for each format.

Readers hand out what is in the files, as tensors, arrays and lists, and divide and change nothing. Nothing is downloaded. A file
that is missing, damaged or another than it should be is an error that names the file, what was expected, and where the data
come from.
"""
