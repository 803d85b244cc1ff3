"""Times how replies reach a ServerApp."""
