"""What is checked of a bundle, one subject in each module: receipts, payment channels, completeness."""
