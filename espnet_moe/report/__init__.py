"""Reports: tables made from result files alone."""
