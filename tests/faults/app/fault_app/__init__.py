"""An app whose training is a closed form, and which tests hold, kill and spoil."""
