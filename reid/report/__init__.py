"""Report: results as tables, figures and one page that opens anywhere."""
