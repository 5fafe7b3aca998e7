package differential

import (
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Objects makes single objects with the choices of Generate, for a test that
// has a cluster of its own. Where such an object stands (names, nodes,
// addresses) is for that test to say.
type Objects struct{ g generator }

// NewObjects makes its choices by r.
func NewObjects(r *rand.Rand) *Objects { return &Objects{generator{chooser: r}} }

// Labels are those of any object.
func (o *Objects) Labels() map[string]string { return o.g.labels() }

// Namespace has labels, and may ask for its policies to be logged.
func (o *Objects) Namespace(name string) *corev1.Namespace { return o.g.namespace(name) }

// Containers gives a Pod containers with ports that NetworkPolicy's rules name.
func (o *Objects) Containers(p *corev1.Pod) { o.g.containers(p) }

// NetworkPolicy is of any form that validation lets through. Its selectors of
// Namespaces go by labels, or by the names of NamespaceNames.
func (o *Objects) NetworkPolicy(namespace, name string) *networkingv1.NetworkPolicy {
	return o.g.policy(namespace, name)
}

// NamespaceNames are the names that selectors of Namespaces ask for.
func NamespaceNames() []string { return append([]string{}, namespaceNames...) }
