"""Two-stage coded training against one-stage codes and plain FedAvg."""
