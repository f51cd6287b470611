"""Numbers that papers report: classification and verification, with their protocols."""
