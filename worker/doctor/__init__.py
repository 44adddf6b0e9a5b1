"""Whether everything is right, and how to mend what is not."""
