"""One page that tells a whole experiment, with its tables as CSV and LaTeX beside it."""
