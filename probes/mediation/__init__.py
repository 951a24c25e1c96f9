"""What a change does: states swapped between two models, and the shares of the effect."""
