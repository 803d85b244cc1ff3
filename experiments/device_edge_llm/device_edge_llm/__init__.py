"""A drafter trained by coded federated learning, and measured by DSSD."""
