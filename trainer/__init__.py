"""Pictures in, a finished concept out: four methods as rows of one loop."""
