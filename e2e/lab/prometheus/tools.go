//go:build tools

// Package prometheus pins Prometheus and promtool, because Debian's finds no pods.
//
// Owns the version, in go.mod and go.sum. Never compiled itself: `cargo xtask lab` builds the
// commands that it imports, with no discovery but that of Kubernetes.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
