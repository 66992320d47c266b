"""Graders: rewards of single answers, as OpenAI's graders define them. `tandem.rl.graders.grading` runs them."""
