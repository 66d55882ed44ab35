"""Console commands of this package: `belvedere data` and `belvedere train`."""
