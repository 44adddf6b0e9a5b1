"""What drift is measured on, and the reports of it."""
