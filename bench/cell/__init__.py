"""Computation of one cell (measurement, method, rows) and the guard around it."""
