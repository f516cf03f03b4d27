"""Corruptions: linear operators with exact adjoints, and measurements that depend on a key and on nothing else.

Images are in model range [-1, 1] throughout. `options` is free of torch, so that a plan can be checked without it.
"""
