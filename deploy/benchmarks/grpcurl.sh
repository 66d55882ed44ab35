#!/usr/bin/env bash
# Builds grpcurl, which knows of a server only what its reflection says; prints the program.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/go_program.sh" grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl v1.9.3
