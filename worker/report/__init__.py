"""The report: one page of pictures of a model version and the rows it scored."""
