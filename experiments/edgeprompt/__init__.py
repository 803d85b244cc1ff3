"""What the experiments on spliced prompts share: models, prompts, what is compared."""
