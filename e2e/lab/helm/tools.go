//go:build tools

// Package helm pins Helm, which installs the charts in a lab.
//
// Owns the version, in go.mod and go.sum. Never compiled itself: `cargo xtask lab` builds the
// command that it imports.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
