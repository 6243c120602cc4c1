"""Executable contracts, one file a stage; third parties run them on their own methods."""
