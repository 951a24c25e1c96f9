"""What a model reads: traits, controls, question banks, chat rendering and training sets."""
