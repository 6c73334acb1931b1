"""Example data sets that ship with the runner, and the code that generates them."""
