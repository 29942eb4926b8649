"""Our operators on their own: their formulas in numpy, layers of them, and each instruction set."""
