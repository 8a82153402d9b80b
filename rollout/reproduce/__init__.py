"""The paper's results, simulated: ours beside theirs, row by row; and what lies past them."""
