"""Corruptions: linear operators with exact adjoints, and measurements that depend on a key and on nothing else.

Images are in model range [-1, 1] everywhere. `options` does not import torch, so a plan can check options without it.
"""
