"""Calls that payment channels pay for, and how what is in channels comes back."""
