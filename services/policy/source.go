package policy

import (
	"context"
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/source/kubernetes"
	"github.com/weirnet/weir/services/policy/source/manifests"
	"github.com/weirnet/weir/storage"
)

// Source is where a Service takes its objects from.
type Source interface {
	// Run reads until the context ends.
	Run(ctx context.Context) error
	// Next waits for a batch; it is called by one goroutine, beside Run. While
	// nobody calls it, changes gather. An error ends the service, or is the
	// context's.
	Next(ctx context.Context) (Batch, error)
}

// Batch is what a source read at once. It becomes one revision.
type Batch struct {
	Events   []api.Event
	Position storage.Position // How far the source has been read with it.
	Synced   bool             // All that there was at the start is in, with this batch.
	Problems int              // What is known to be not in force as it stands.
	// Read is how far the source has been read, which may be further than where
	// the last change was. Nil: it is the position.
	Read storage.Position
}

// Announcer is a Source that wants to know what shims report of their ports.
type Announcer interface {
	// Announce says which addresses the ports of a node give to which Pods, all
	// of them; nil when the node is not connected any more.
	Announce(node string, ports []*policyv1.PortState)
}

// cluster is a Kubernetes API server as a Source.
type cluster struct{ *kubernetes.Source }

const clusterSource = "kubernetes"

// Next implements Source.
func (c cluster) Next(ctx context.Context) (Batch, error) {
	b, err := c.Source.Next(ctx)
	return Batch{Events: b.Events, Position: storage.Position{clusterSource: b.Position}, Read: storage.Position{clusterSource: b.Read}, Synced: true, Problems: b.Problems}, err
}

// Announce implements Announcer. What an interface does not say of its Pod is not
// passed on, nor is what the shim would not send.
func (c cluster) Announce(node string, ports []*policyv1.PortState) {
	if ports == nil {
		c.Source.Announce(node, nil)
		return
	}
	list := make([]kubernetes.Address, 0, len(ports))
	for _, p := range ports {
		a := kubernetes.Address{Namespace: p.GetNamespace(), Name: p.GetName(), UID: p.GetUid()}
		for _, raw := range p.GetIps() {
			if ip, ok := netip.AddrFromSlice(raw); ok {
				a.IPs = append(a.IPs, ip.Unmap())
			}
		}
		if a.Namespace != "" && a.Name != "" && len(a.IPs) > 0 {
			list = append(list, a)
		}
	}
	c.Source.Announce(node, list)
}

// folder is a folder of manifests as a Source.
type folder struct{ *manifests.Source }

// Next implements Source.
func (f folder) Next(ctx context.Context) (Batch, error) {
	select {
	case b, open := <-f.Batches():
		if !open { // Its Run has ended, and so does the service.
			<-ctx.Done()
			return Batch{}, ctx.Err()
		}
		return Batch{Events: b.Events, Position: storage.Position{"manifests": b.Position}, Synced: b.Synced, Problems: len(b.Problems)}, nil
	case <-ctx.Done():
		return Batch{}, ctx.Err()
	}
}
