"""Public operators: checks, backend choice and registration. One module for each operator."""
