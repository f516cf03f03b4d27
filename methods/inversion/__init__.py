"""Inversion methods: one per file, in the paper's symbols, with the paper's defaults."""
