"""The ways to label a picture that are compared; each is imported where it is run."""
