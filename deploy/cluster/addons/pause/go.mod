module belvedere.dev/cluster/pause

go 1.21
