"""Names of metrics and the PromQL that reads them."""
