"""The benchmark: `make bench`. `README.md` beside this file says what is measured and how."""
