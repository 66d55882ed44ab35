"""The ModelService controller: keeps a version served, and replaces it by another with evidence."""
