// Taken in place of the file of this name in Prometheus, which brings the software of two dozen cloud providers.

package plugins

import (
	_ "github.com/prometheus/prometheus/discovery/kubernetes"
)
