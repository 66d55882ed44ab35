"""Prompting: texts around a class or a question, written by hand or learned, in front of a frozen model."""
