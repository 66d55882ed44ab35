"""Turn child manifests into processes, Ray jobs, Serve applications and rule files on one machine."""
