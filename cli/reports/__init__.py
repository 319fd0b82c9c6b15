"""What is said, apart from how it is written: documents, tables, pages."""
