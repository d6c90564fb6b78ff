"""The classifier with one row a document, and what is learned in closed form."""
