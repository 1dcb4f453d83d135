"""What was measured, as data: the machine, the document, its tables, plots and pages."""
