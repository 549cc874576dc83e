"""One public corpus a file; each yields exams (see exam.py)."""
