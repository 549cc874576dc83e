"""One image model a file, found by its file name."""
