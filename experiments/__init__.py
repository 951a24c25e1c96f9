"""Studies, their stages, the engine that runs them, reports and the command line."""
