"""What is computed: one file a kind of stage, with what it writes and how that is loaded again."""
