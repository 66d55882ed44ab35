"""TrainingRun: becomes RayJobs, one an attempt, and a ModelVersion when its gates hold."""
