"""What the experiments on speculative decoding share: models, prompts, baselines."""
