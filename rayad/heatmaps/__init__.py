"""One image in, what is said of it out: its reading, its judgement, its findings and its pictures."""
