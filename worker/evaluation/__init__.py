"""`pgoutlier evaluate`: how well recipes detect on the rows of a file, with no server at all."""
