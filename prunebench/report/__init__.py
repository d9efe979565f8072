"""Presentation toolkit: tables, plots and numbers for Markdown, HTML, SVG, plotly and the terminal.

It knows no task, method or record: rooms above hand it rows and columns, or marks and axes, and choose a renderer.
"""
