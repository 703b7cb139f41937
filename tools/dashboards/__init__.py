"""Draws the dashboards of the chart with what their queries return: ``python -m tools.dashboards``.

Grafana is a program of its own, and not needed for this: a panel's JSON says what is asked and how it is to be shown.
What is drawn here is a likeness. The places, titles, queries, units, colours and numbers are those of the file.
"""
