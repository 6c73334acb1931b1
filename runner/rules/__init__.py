"""The hyper-parameter rules that the field teaches, and where a config departs from them."""
