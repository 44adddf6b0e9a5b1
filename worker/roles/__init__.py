"""What administrators let other roles do."""
