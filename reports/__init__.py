"""Reports from the store: statistics, tables, figures and one HTML page. They need no torch and no methods.

`python -m reports.build sweep=NAME store=results` reads the finished cells of a sweep and writes
`STORE/reports/NAME/`. The same store always gives the same bytes.
"""
