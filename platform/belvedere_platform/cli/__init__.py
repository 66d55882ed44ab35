"""The command line: verbs of the platform, and those that the other packages bring."""
