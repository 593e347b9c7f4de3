// Package customizations is where the scripts that tell Argo CD about our kinds are tested, by the
// interpreter that Argo CD runs them with. The scripts themselves are in deploy/argocd.
package customizations
