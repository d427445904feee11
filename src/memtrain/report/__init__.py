"""What a person looks at: the console, plots, summaries, documents and rollouts."""
