"""Measurements that the project keeps; run by hand: `python -m bench` lists them."""
