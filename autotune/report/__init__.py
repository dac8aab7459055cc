"""What people look at: tables, and later plots and pages. Imports neither torch nor Triton."""
